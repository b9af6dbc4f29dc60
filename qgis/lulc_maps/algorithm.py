"""A command of lulc as a Processing algorithm, its form made from what the command says of its options."""

from __future__ import annotations

import os

from qgis.core import (
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingOutputVectorLayer,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
)

from .command import CommandError, arguments_of, run


class CommandAlgorithm(QgsProcessingAlgorithm):
    """One of the commands; `form` is its part of the forms."""

    def __init__(self, form, python):
        super().__init__()
        self._form, self._python = form, python

    def createInstance(self):
        """Return a copy, which QGIS runs."""
        return CommandAlgorithm(self._form, self._python)

    def name(self):
        """Return the name in scripts."""
        return self._form["name"]

    def displayName(self):
        """Return the name in the toolbox."""
        return self._form["title"]

    def shortHelpString(self):
        """Return the help beside the form."""
        return self._form["help"].replace("\n\n", "<p>")

    def flags(self):
        """Run in a thread of its own, and be stoppable."""
        return super().flags() | QgsProcessingAlgorithm.FlagCanCancel

    def initAlgorithm(self, configuration=None):
        """Make the form."""
        for option in self._form["options"]:
            parameter = _parameter(option)
            parameter.setHelp(option["help"])
            if option["group"]:
                parameter.setFlags(parameter.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
            self.addParameter(parameter)
        for file, _ in self._form["layers"]:
            self.addOutput(QgsProcessingOutputVectorLayer(_layer_name(file), os.path.splitext(file)[0]))

    def processAlgorithm(self, parameters, context, feedback):
        """Run the command."""
        options = self._form["options"]
        values = {o["name"]: self._value(o, parameters, context) for o in options}
        words = arguments_of(options, values)
        feedback.pushCommandInfo(" ".join([self._form["module"], *words]))
        try:
            found = run(
                self._python, self._form["module"], words, feedback.isCanceled, feedback.setProgress,
                feedback.pushInfo,
            )  # fmt: skip
        except CommandError as error:
            raise QgsProcessingException(str(error)) from error
        for name, value in found.items():
            feedback.pushInfo(f"{name}: {value}")
        results = {
            o["name"]: values[o["name"]] for o in options if o["kind"].startswith("new") and values[o["name"]]
        }
        for file, layer in self._form["layers"]:
            place = f"{os.path.join(values['out'], file)}|layername={layer}"
            results[_layer_name(file)] = place
            if context.project() is not None:
                details = QgsProcessingContext.LayerDetails(layer, context.project(), _layer_name(file))
                context.addLayerToLoadOnCompletion(place, details)
        return results

    def _value(self, option, parameters, context):
        """Return the value of an option as the command line takes it; None where it is left open."""
        name, kind = option["name"], option["kind"]
        if parameters.get(name) in (None, "", []) and not kind.startswith("new"):
            return None
        if kind == "switch":
            return self.parameterAsBool(parameters, name, context)
        if kind == "raster" and option["several"]:
            return [layer.source() for layer in self.parameterAsLayerList(parameters, name, context)]
        if kind == "raster":
            layer = self.parameterAsRasterLayer(parameters, name, context)
            return layer.source() if layer else self.parameterAsString(parameters, name, context)
        if kind == "choice":
            several = self.parameterAsEnumStrings(parameters, name, context)
            return several if option["several"] else next(iter(several), None)
        if kind.startswith("new"):
            if parameters.get(name) is None and not option["required"]:
                return None
            return (
                self.parameterAsOutputLayer(parameters, name, context)
                if kind == "new raster"
                else (
                    self.parameterAsString(parameters, name, context)
                    if kind == "new folder"
                    else self.parameterAsFileOutput(parameters, name, context)
                )
            )
        if option["several"]:
            return self.parameterAsString(parameters, name, context).split()
        if kind == "whole":
            return self.parameterAsInt(parameters, name, context)
        if kind == "number":
            return self.parameterAsDouble(parameters, name, context)
        return self.parameterAsString(parameters, name, context)


def _layer_name(file):
    return os.path.splitext(file)[0].upper()


def _parameter(option):
    """Return the element of a form for an option."""
    name, title, default = option["name"], option["title"], option["preset"]
    optional, kind = not option["required"], option["kind"]
    if kind == "switch":
        return QgsProcessingParameterBoolean(name, title, bool(default), optional)
    if kind == "choice":
        return QgsProcessingParameterEnum(
            name, title, option["choices"], option["several"], default or None, optional, True
        )
    if kind == "raster" and option["several"]:
        return QgsProcessingParameterMultipleLayers(name, title, QgsProcessing.TypeRaster, None, optional)
    if kind == "raster":
        return QgsProcessingParameterRasterLayer(name, title, None, optional)
    if kind == "new raster":
        return QgsProcessingParameterRasterDestination(name, title)
    if kind == "new folder":
        return QgsProcessingParameterFolderDestination(name, title, None, optional, not optional)
    if kind == "new file":
        ending = option["ending"]
        return QgsProcessingParameterFileDestination(
            name, title, f"{ending} (*{ending})", None, optional, False
        )
    if kind == "folder" and not option["several"]:
        return QgsProcessingParameterFile(name, title, QgsProcessingParameterFile.Folder, "", None, optional)
    if kind in ("whole", "number") and not option["several"]:
        type_ = (
            QgsProcessingParameterNumber.Integer if kind == "whole" else QgsProcessingParameterNumber.Double
        )
        parameter = QgsProcessingParameterNumber(name, title, type_, default, optional)
        if option["least"] is not None:
            parameter.setMinimum(option["least"])
        if option["most"] is not None:
            parameter.setMaximum(option["most"])
        return parameter
    text = " ".join(map(str, default)) if isinstance(default, list) else default
    if kind == "path" and not option["several"]:
        # A file or a folder, or the name of a model: QGIS has no element for that but text.
        return QgsProcessingParameterString(name, title, text, False, optional)
    return QgsProcessingParameterString(name, title, text, False, optional)
