"""What is kept on the disk: artifacts by fingerprint, the locks on them, the records of runs."""
