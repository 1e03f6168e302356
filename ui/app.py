"""What `streamlit run` starts; everything is in ui/views."""

from ui.views.explorer import main

main()
