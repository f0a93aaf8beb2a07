"""What comes from others: read by type and within limits, and shown without obeying it."""
