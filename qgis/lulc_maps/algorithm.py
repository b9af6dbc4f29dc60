"""A command of lulc as a Processing algorithm, its form made from what the command says of its options."""

from __future__ import annotations

import os

from qgis.core import (
    Qgis,
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingLayerPostProcessorInterface,
    QgsProcessingOutputHtml,
    QgsProcessingOutputVectorLayer,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterMapLayer,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorDestination,
    QgsProcessingParameterVectorLayer,
    QgsProcessingUtils,
    QgsProviderRegistry,
    QgsVectorLayer,
    QgsWkbTypes,
)

from .command import CommandError, arguments_of, run, several_of

FORMATS = ["gpkg", "geojson", "json", "shp", "fgb", "parquet"]
"""Vector files that the commands read."""


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
        if self._form["page"]:
            self.addOutput(QgsProcessingOutputHtml("PAGE", self._form["title"]))

    def processAlgorithm(self, parameters, context, feedback):
        """Run the command."""
        options = self._form["options"]
        values = {o["name"]: self._value(o, parameters, context) for o in options}
        for option in options:
            if option["kind"] in ("vector", "layer") and isinstance(values[option["name"]], QgsVectorLayer):
                values |= _file_of(values[option["name"]], option["name"], values, context, feedback)
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
            for line in _lines(name, value):
                feedback.pushInfo(line)
        results = {
            o["name"]: values[o["name"]] for o in options if o["kind"].startswith("new") and values[o["name"]]
        }
        for file, layer in self._form["layers"]:
            place = f"{os.path.join(values['out'], file)}|layername={layer}"
            results[_layer_name(file)] = place
            if context.project() is not None:
                details = QgsProcessingContext.LayerDetails(layer, context.project(), _layer_name(file))
                context.addLayerToLoadOnCompletion(place, details)
        for place in context.layersToLoadOnCompletion():
            # QGIS loads results without the style that lies beside them, or in them.
            context.layerToLoadOnCompletionDetails(place).setPostProcessor(STYLER)
        if self._form["page"]:
            results["PAGE"] = os.path.join(values["out"], self._form["page"])
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
        if kind in ("vector", "layer"):
            layer = self.parameterAsLayer(parameters, name, context)
            if isinstance(layer, QgsVectorLayer):
                return layer
            return layer.source() if layer else self.parameterAsString(parameters, name, context)
        if kind == "choice":
            several = self.parameterAsEnumStrings(parameters, name, context)
            return several if option["several"] else next(iter(several), None)
        if kind.startswith("new"):
            if parameters.get(name) is None and not option["required"]:
                return None
            return (
                self.parameterAsOutputLayer(parameters, name, context)
                if kind in ("new raster", "new vector")
                else (
                    self.parameterAsString(parameters, name, context)
                    if kind == "new folder"
                    else self.parameterAsFileOutput(parameters, name, context)
                )
            )
        if option["several"]:
            return several_of(self.parameterAsString(parameters, name, context))
        if kind == "whole":
            return self.parameterAsInt(parameters, name, context)
        if kind == "number":
            return self.parameterAsDouble(parameters, name, context)
        return self.parameterAsString(parameters, name, context)


class _Styler(QgsProcessingLayerPostProcessorInterface):
    """Gives a result its own style."""

    def postProcessLayer(self, layer, context, feedback):
        """Load the style."""
        layer.loadDefaultStyle()
        layer.triggerRepaint()


STYLER = _Styler()
"""QGIS holds no reference of its own."""


def _lines(name, value):
    """Return the lines that show a part of a command's answer."""
    if not isinstance(value, list):
        return [f"{name}: {_text(value)}"]
    return [f"{name}:", *(f"    {_text(one)}" for one in value)]


def _text(value):
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _file_of(layer, name, values, context, feedback):
    """Return the file of a vector layer as option `name`, and which of its layers it is where that is asked.

    A layer that is no such file, that is filtered, or that is one of several without an option that names it,
    is written to a file of its own first.
    """
    if layer.isModified():
        raise QgsProcessingException(
            f"cannot use the layer '{layer.name()}', since its edits are not saved\n\nSave them first."
        )
    convert = QgsProcessingUtils.convertToCompatibleFormatAndLayerName
    path, inner = convert(layer, False, name, FORMATS, "gpkg", context, feedback)
    found = QgsProviderRegistry.instance().querySublayers(path, Qgis.SublayerQueryFlag.ResolveGeometryType)
    if sum(one.wkbType() != QgsWkbTypes.NoGeometry for one in found) < 2:
        return {name: path}
    if name in ("labels", "reference"):
        return {name: path, "label_layer": values.get("label_layer") or inner}
    return {name: convert(layer, False, name, [], "gpkg", context, feedback)[0]}


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
    if kind == "vector":
        return QgsProcessingParameterVectorLayer(name, title, [], None, optional)
    if kind == "layer":
        return QgsProcessingParameterMapLayer(
            name, title, None, optional, [QgsProcessing.TypeRaster, QgsProcessing.TypeVector]
        )
    if kind == "new vector":
        return QgsProcessingParameterVectorDestination(
            name, title, QgsProcessing.TypeVectorPolygon, None, optional, False
        )
    if kind == "new raster":
        return QgsProcessingParameterRasterDestination(name, title)
    if kind == "new folder":
        return QgsProcessingParameterFolderDestination(name, title, None, optional, not optional)
    if kind == "new file":
        ending = option["ending"]
        return QgsProcessingParameterFileDestination(
            name, title, f"{ending} (*{ending})", None, optional, False
        )
    if kind in ("folder", "path"):
        # Names of models, addresses and several files can be typed into it as well.
        behaviour = QgsProcessingParameterFile.Folder if kind == "folder" else QgsProcessingParameterFile.File
        # By default names without a dot are refused, as those of most folders and models are.
        return QgsProcessingParameterFile(name, title, behaviour, "", None, optional, "All files (*)")
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
    return QgsProcessingParameterString(name, title, text, False, optional)
