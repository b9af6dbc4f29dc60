"""QGIS plug-in that runs the commands of lulc as Processing algorithms."""


def classFactory(iface):
    """Return the plug-in."""
    from .plugin import Plugin

    return Plugin(iface)
