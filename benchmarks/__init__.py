"""What the queue, the verification and the bookkeeping cost beside bare ffmpeg and bare Celery: see README.md."""
