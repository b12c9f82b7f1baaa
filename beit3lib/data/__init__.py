"""Read WTS data, without torch: videos and captions in, images, caption files and index out."""
