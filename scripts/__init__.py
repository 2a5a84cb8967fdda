"""Programs of the project itself: what the Makefile, the image's build and the documentation's tests run."""
