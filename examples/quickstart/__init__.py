"""The whole story in small: real images, minutes on two cores."""
