"""The plug-in and its Processing provider."""

from __future__ import annotations

from qgis.core import Qgis, QgsApplication, QgsMessageLog, QgsProcessingProvider, QgsSettings

from .algorithm import CommandAlgorithm
from .command import CommandError, find_python, read_forms

SETTING = "lulc_maps/python"


class Provider(QgsProcessingProvider):
    """The commands of the lulc that is installed."""

    def id(self):
        """Return the name in scripts."""
        return "lulc"

    def name(self):
        """Return the name in the toolbox."""
        return "Land-cover maps (lulc)"

    def python(self):
        """Return the Python of the commands; empty where none is known."""
        return find_python(QgsSettings().value(SETTING, "") or "")

    def loadAlgorithms(self):
        """Ask the installed commands for their forms."""
        python = self.python()
        if not python:
            return
        try:
            found = read_forms(python)
        except CommandError as error:
            QgsMessageLog.logMessage(str(error), "lulc", Qgis.Warning)
            return
        for form in found["algorithms"]:
            self.addAlgorithm(CommandAlgorithm(form, python))


class Plugin:
    """Registers the provider, and asks for the Python of lulc where it is not found."""

    def __init__(self, iface):
        self._iface, self._provider, self._action = iface, None, None

    def initProcessing(self):
        """Register the provider; QGIS calls this without a window, too."""
        self._provider = Provider()
        QgsApplication.processingRegistry().addProvider(self._provider)

    def initGui(self):
        """Add the menu entry."""
        from qgis.PyQt.QtWidgets import QAction

        self.initProcessing()
        self._action = QAction("Choose the Python of lulc...", self._iface.mainWindow())
        self._action.triggered.connect(self.choose)
        self._iface.addPluginToMenu("Land-cover maps", self._action)
        if not self._provider.python():
            self._iface.messageBar().pushMessage(
                "Land-cover maps",
                "lulc is not found. Install it, then choose its Python in the menu Plugins, Land-cover maps.",
                Qgis.Warning,
            )

    def choose(self):
        """Ask for the Python of lulc, and remember it."""
        from qgis.PyQt.QtWidgets import QFileDialog

        path, _ = QFileDialog.getOpenFileName(
            self._iface.mainWindow(), "Python that has lulc", self._provider.python()
        )
        if not path:
            return
        try:
            read_forms(path)
        except CommandError as error:
            self._iface.messageBar().pushMessage("Land-cover maps", str(error), Qgis.Warning)
            return
        QgsSettings().setValue(SETTING, path)
        self._provider.refreshAlgorithms()

    def unload(self):
        """Remove provider and menu entry."""
        QgsApplication.processingRegistry().removeProvider(self._provider)
        if self._action is not None:
            self._iface.removePluginMenu("Land-cover maps", self._action)
