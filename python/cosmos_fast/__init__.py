"""cosmos-fast: NVIDIA Cosmos-Predict2 Video2World as an engine to embed."""
