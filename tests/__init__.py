"""The tests, and what they share with the demo and the benchmarks: services and clips."""
