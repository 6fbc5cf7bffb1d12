//! A deployed workflow and its typed interface as JSON. Not here: the OpenAPI document of one workflow
//! (`workflow_document`).

use protocol::{Candidates, InputKind, Interface, LockedModel, WorkflowName};
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::view::{DeployedWorkflow, Requirements};

/// All versions of all workflows: by name, the current version of each first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Workflows {
    pub(crate) workflows: Vec<Workflow>,
}

/// One deployed version of a workflow. It never changes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Workflow {
    /// Its name.
    name: String,
    /// Which deploy of that name it was, from 1.
    version: u32,
    /// Whether a call that names no version runs this one.
    current: bool,
    /// POST here submits a job.
    url: String,
    /// The OpenAPI document of this workflow.
    openapi_url: String,
    /// When it was deployed.
    #[serde(with = "time::serde::rfc3339")]
    deployed: OffsetDateTime,
    /// The hash of its bundle's manifest, in hex.
    bundle: String,
    /// The hash of its lockfile, in hex.
    lockfile: String,
    /// What a caller gives.
    inputs: Vec<Input>,
    /// What comes back.
    outputs: Vec<Output>,
    /// The repairs and warnings of its deploy, in words.
    notes: Vec<String>,
    /// What a node must have for it.
    requirements: WorkflowRequirements,
    /// The models of its lockfile that its graph names.
    models: Vec<Model>,
}

/// A workflow with the list of its name's versions.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WorkflowDetail {
    #[serde(flatten)]
    pub(crate) workflow: Workflow,
    /// All versions of the name, the newest first.
    pub(crate) versions: Vec<u32>,
}

/// What a deploy gave.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeployedAnswer {
    #[serde(flatten)]
    pub(crate) workflow: Workflow,
    /// What it needs and nothing in the farm has.
    pub(crate) missing: Vec<Missing>,
}

/// Something that a workflow needs and nothing in the farm has.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Missing {
    /// What it is.
    pub(crate) kind: MissingKind,
    /// A model as `folder/name`, or a class of op.
    pub(crate) name: String,
    /// Where it was looked for.
    pub(crate) detail: String,
}

/// What is missing.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MissingKind {
    /// A model that no node lists and no URL gives.
    Model,
    /// A class of op that no node has.
    Op,
}

/// What a node must have for a workflow.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WorkflowRequirements {
    /// The classes of op in its graph.
    classes: Vec<String>,
    /// The model files, as `folder/name`.
    models: Vec<String>,
    /// Whether an attached ComfyUI, which proves no lockfile, may run it.
    accept_attached: bool,
}

/// A model file, as a lockfile pins it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkflowModel)]
pub(crate) struct Model {
    /// Where it lies in the ComfyUI folder, such as `models/checkpoints/x.safetensors`.
    path: String,
    /// How many bytes it has.
    size: u64,
    /// Its SHA-256 in hex.
    #[schema(required)]
    sha256: Option<String>,
    /// Its BLAKE3 hash in hex.
    #[schema(required)]
    blob: Option<String>,
    /// Where it can be fetched from, the preferred first.
    sources: Vec<String>,
    /// Whether peers may have it.
    share: bool,
}

impl From<&LockedModel> for Model {
    fn from(model: &LockedModel) -> Self {
        Self {
            path: model.path.to_string(),
            size: model.size,
            sha256: model.sha256.map(|sha256| sha256.to_string()),
            blob: model.blob.map(|blob| blob.to_string()),
            sources: model.sources.iter().map(|source| source.url.to_string()).collect(),
            share: model.share,
        }
    }
}

/// One value that a caller gives.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkflowInput)]
pub(crate) struct Input {
    /// Its name in the API.
    name: String,
    /// Its name for people.
    title: String,
    /// What may be given.
    r#type: InputType,
    /// Whether it must be given.
    required: bool,
    /// What is taken when nothing is given; left out when it is required.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    default: Option<Value>,
    /// The least that is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    minimum: Option<Number>,
    /// The most that is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    maximum: Option<Number>,
    /// The values of a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    values: Option<Vec<Value>>,
    /// The media types of a file, such as `image/*`.
    #[serde(skip_serializing_if = "Option::is_none")]
    media: Option<&'static str>,
}

/// What may be given for an input.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum InputType {
    /// A text.
    String,
    /// A whole number.
    Integer,
    /// Any number.
    Number,
    /// True or false.
    Boolean,
    /// One of `values`.
    Choice,
    /// Only null.
    Null,
    /// A list of anything.
    Array,
    /// An object of anything.
    Object,
    /// A picture.
    Image,
    /// Any file.
    File,
}

/// One result that comes back.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkflowOutput)]
pub(crate) struct Output {
    /// Its name in the API.
    name: String,
    /// What its files are.
    kind: OutputKind,
    /// Their media type.
    media_type: &'static str,
    /// Whether one job may give several files.
    many: bool,
}

/// What the files of an output are.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OutputKind {
    Image,
    Text,
    Audio,
    Video,
    Zip,
    File,
}

/// Which version a name should run from now on.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RestoreRequest {
    /// A version of that name.
    #[schema(minimum = 1)]
    pub(crate) version: u32,
}

/// What could be exposed of a workflow that exposes nothing.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeployCandidates {
    /// Inputs of ops, to be passed as `input=NAME=NODE.FIELD`.
    inputs: Vec<InputCandidate>,
    /// Ops that make files, to be passed as `output=NODE`.
    outputs: Vec<OutputCandidate>,
}

/// An input of an op that could be exposed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct InputCandidate {
    /// As `NODE.FIELD`.
    input: String,
    /// The op's title, or its class.
    title: String,
    /// The op's class.
    class: String,
    /// Its value in the graph.
    value: Value,
}

/// An op whose files could be an output.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OutputCandidate {
    /// The op's id.
    node: String,
    /// Its title, or its class.
    title: String,
    /// Its class.
    class: String,
}

impl Workflow {
    /// The JSON of a version.
    pub(crate) fn new(deployed: &DeployedWorkflow, current: bool) -> Self {
        let interface = &deployed.interface;
        let this = workflow_path(&deployed.id.name, deployed.id.version);
        Self {
            name: deployed.id.name.to_string(),
            version: deployed.id.version,
            current,
            url: format!("{this}/jobs"),
            openapi_url: format!("{this}/openapi.json"),
            deployed: deployed.deployed,
            bundle: deployed.bundle.to_string(),
            lockfile: deployed.lockfile.to_string(),
            inputs: interface.inputs.iter().map(Input::from).collect(),
            outputs: interface.outputs.iter().map(Output::from).collect(),
            notes: deployed.notes.clone(),
            requirements: (&deployed.requirements).into(),
            models: deployed.models.iter().map(Model::from).collect(),
        }
    }
}

/// Where a version is found.
pub(crate) fn workflow_path(name: &WorkflowName, version: u32) -> String {
    format!("/v1/workflows/{name}@{version}")
}

impl From<&Requirements> for WorkflowRequirements {
    fn from(requirements: &Requirements) -> Self {
        Self {
            classes: requirements.classes.iter().cloned().collect(),
            models: requirements.models.iter().cloned().collect(),
            accept_attached: requirements.accept_attached,
        }
    }
}

impl From<&protocol::Input> for Input {
    fn from(input: &protocol::Input) -> Self {
        let (r#type, range, values, media) = match &input.kind {
            InputKind::Text => (InputType::String, None, None, None),
            InputKind::Integer(range) => (InputType::Integer, Some(range), None, None),
            InputKind::Number(range) => (InputType::Number, Some(range), None, None),
            InputKind::Boolean => (InputType::Boolean, None, None, None),
            InputKind::Choice { values } => (InputType::Choice, None, Some(values.clone()), None),
            InputKind::Null => (InputType::Null, None, None, None),
            InputKind::List => (InputType::Array, None, None, None),
            InputKind::Object => (InputType::Object, None, None, None),
            InputKind::Image => (InputType::Image, None, None, Some("image/*")),
            InputKind::File => (InputType::File, None, None, Some("*/*")),
        };
        Self {
            name: input.name.clone(),
            title: input.title.clone(),
            r#type,
            required: input.is_required(),
            default: input.default.clone(),
            minimum: range.and_then(|range| range.minimum.clone()),
            maximum: range.and_then(|range| range.maximum.clone()),
            values,
            media,
        }
    }
}

impl From<&protocol::Output> for Output {
    fn from(output: &protocol::Output) -> Self {
        Self {
            name: output.name.clone(),
            kind: output.kind.into(),
            media_type: output.media_type(),
            many: output.many(),
        }
    }
}

impl From<protocol::OutputKind> for OutputKind {
    fn from(kind: protocol::OutputKind) -> Self {
        match kind {
            protocol::OutputKind::Image => Self::Image,
            protocol::OutputKind::Text => Self::Text,
            protocol::OutputKind::Audio => Self::Audio,
            protocol::OutputKind::Video => Self::Video,
            protocol::OutputKind::Zip => Self::Zip,
            protocol::OutputKind::File => Self::File,
        }
    }
}

impl DeployCandidates {
    /// What could be exposed of a graph.
    pub(crate) fn of(graph: &protocol::Workflow) -> Self {
        let Candidates { inputs, outputs } = Interface::candidates(graph);
        let class = |op: &str| graph.get(op).map(|op| op.class_type.clone()).unwrap_or_default();
        let inputs = inputs.into_iter().map(|candidate| InputCandidate {
            class: class(&candidate.op),
            input: format!("{}.{}", candidate.op, candidate.field),
            title: candidate.title,
            value: candidate.value,
        });
        let outputs = outputs.into_iter().map(|candidate| OutputCandidate {
            node: candidate.op,
            title: candidate.title,
            class: candidate.class_type,
        });
        Self { inputs: inputs.collect(), outputs: outputs.collect() }
    }
}
