"""A toy study on the frame: how fast does gradient descent with momentum fit a line, y = scale * w x?"""
