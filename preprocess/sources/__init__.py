"""What there is to build from: data sets on the disk, their lists, and which video belongs where."""
