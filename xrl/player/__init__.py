"""Play inside a learned world model, in a browser: `xrl dream RUN`. See docs/dream.md."""
