"""What is there only for speed and memory: Winograd convolutions, the fused hash loss, freeing of memory."""
