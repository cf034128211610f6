"""Pre-training (paper section 2): views, projector, loss, optimizer, and the loop around them."""
