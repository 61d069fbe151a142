"""Faster or leaner implementations with switches: Winograd convolution, fused hash loss, freeing of memory."""
