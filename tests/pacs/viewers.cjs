// What dcmjs and OHIF's own reader of structured reports make of a DICOM file, as one line of JSON.
// Arguments: the folder of node_modules, OHIF's extension (umd.js), the file. Around OHIF's code stand-ins for the viewer.
const fs = require("fs"), path = require("path"), Module = require("module");
const [, , modules, extension, file] = process.argv;
const dcmjs = require(path.join(modules, "dcmjs"));
const bytes = fs.readFileSync(file);
const read = dcmjs.data.DicomMessage.readFile(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
const instance = dcmjs.data.DicomMetaDictionary.naturalizeDataset(read.dict);

const nothing = new Proxy(function () {}, {
  get: (_, key) => (key === Symbol.toPrimitive ? () => "" : nothing), apply: () => nothing, construct: () => nothing,
});
const added = [];
const standins = {
  "@ohif/core": { utils: { sortStudyInstances: () => {}, guid: () => "1", sortDisplaySetsCopy: (sets) => sets,
    sopClassDictionary: { Comprehensive3DSR: "1.2.840.10008.5.1.4.1.1.88.34", BasicTextSR: "1.2.840.10008.5.1.4.1.1.88.11" } },
    classes: { MetadataProvider: { getUIDsFromImageID: (id) => ({ SOPInstanceUID: id, frameNumber: 1 }) } } },
  "@cornerstonejs/adapters": { adaptersSR: { Cornerstone3D: {
    MeasurementReport: { getAdapterForTrackingIdentifier: () => undefined, getAdaptersForTypes: () => [] },
    TEXT_ANNOTATION_POSITION: { value: "-", schemeDesignator: "-" }, COMMENT_CODE: { value: "-", schemeDesignator: "-" },
    CodeScheme: { CodingSchemeDesignator: "CORNERSTONEJS", codeValues: { CORNERSTONEFREETEXT: "CORNERSTONEFREETEXT" } } } } },
  "@ohif/extension-cornerstone": { Enums: {} },
  "@cornerstonejs/core": { utilities: { imageToWorldCoords: (_, point) => point }, metaData: { get: () => ({}) } },
  "@cornerstonejs/tools": { annotation: { state: { addAnnotation: (one) => added.push(one.data) } } },
};
const load = Module._load;
Module._load = (name, ...rest) => {
  const given = standins[name];
  if (given) return new Proxy(given, { get: (all, key) => (key in all ? all[key] : nothing) });
  return /^(@ohif|@cornerstonejs|gl-matrix|react)/.test(name) ? nothing : load(name, ...rest);
};

async function main() {
  const out = { sopClass: instance.SOPClassUID, rows: instance.Rows, frames: instance.NumberOfFrames };
  if (instance.Modality === "SR") {
    const extensionModule = require(extension).default;
    const images = instance.CurrentRequestedProcedureEvidenceSequence.flatMap((study) =>
      study.ReferencedSeriesSequence.flatMap((series) => series.ReferencedSOPSequence.map((i) => i.ReferencedSOPInstanceUID)));
    const services = { displaySetService: { activeDisplaySets: [{ FrameOfReferenceUID: "" }], subscribe: () => {}, EVENTS: {} },
      measurementService: { getSourceMappings: () => [] }, customizationService: { getCustomization: () => undefined } };
    const source = { getImageIdsForDisplaySet: () => images };
    const handlers = extensionModule.getSopClassHandlerModule({ servicesManager: { services },
      extensionManager: { getDataSources: () => [source], getActiveDataSource: () => [source] } });
    const [shown] = handlers[handlers.length - 1].getDisplaySetsFromSeries([instance]);
    await shown.load();
    out.isReport = shown.isImagingMeasurementReport;
    out.library = shown.referencedImages.map((image) => image.ReferencedSOPInstanceUID);
    out.measurements = shown.measurements.map((one) => ({ name: one.TrackingIdentifier, uid: one.TrackingUniqueIdentifier,
      labels: one.labels, image: one.ReferencedSOPInstanceUID, isLoaded: one.loaded }));
    out.drawn = added.length;
  }
  console.log(JSON.stringify(out));
}
main().catch((error) => { console.error(error); process.exit(1); });
