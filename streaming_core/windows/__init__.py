"""Long videos in short windows: their plan, their handovers, and how their results are joined."""
