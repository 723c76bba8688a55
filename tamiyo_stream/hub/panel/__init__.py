"""The panel's page, styles and scripts: plain files, no build step."""
