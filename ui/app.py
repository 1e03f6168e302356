"""What Streamlit runs; everything is in ui/views."""

from ui.views.shell import main

main()
