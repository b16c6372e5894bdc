"""A whole study on the frame, small enough to copy: how fast does gradient descent with momentum fit a sum?"""
