"""How much of a prompt survives when each token's embedding is compressed, measured with controls."""
