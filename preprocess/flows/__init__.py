"""What computes optical flow, but TV-L1."""
