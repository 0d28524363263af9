"""The networks: codec (g_a, h_a, h_s, g_s, ChARM, prior), residual head, discriminator."""
