"""What is kept on disk: artifacts by fingerprint, their locks, the folders of runs."""
