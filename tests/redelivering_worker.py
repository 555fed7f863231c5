"""The real worker over a broker whose visibility timeout is a second; with --late, messages come again after it."""

import sys

from transcoder import queue, worker

if __name__ == "__main__":
    vars(queue)["_TRANSPORT"] |= {
        "visibility_timeout": 1,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "ack_emulation": "--late" in sys.argv,
    }
    vars(queue)["_CONSUMING"]["task_acks_late"] = "--late" in sys.argv
    sys.exit(worker.main([word for word in sys.argv[1:] if word != "--late"]))
