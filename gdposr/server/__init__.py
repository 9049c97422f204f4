"""The server for apps, `gdposr serve --api`: a photo in, pictures out. Needs the extra `server`."""
