"""What the tabs call. No gradio in here, so that it is tested without a browser."""
