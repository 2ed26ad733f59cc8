"""Enhancement and refinement of whole videos: settings, sizes, condition images, and the job made from a request."""
