"""The phases of .ci/gpu, their steps and the scripts that only they run."""
