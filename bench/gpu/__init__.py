"""The phases of .ci/gpu and their steps."""
