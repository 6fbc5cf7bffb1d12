//! The classes of op that the built-in engine has: their inputs, limits and outputs, as ComfyUI's
//! `/object_info` gives them.
//!
//! Not here: what an op does (`op.rs`).

/// Where ComfyUI ends every width and height.
const MAX_RESOLUTION: i64 = 16384;

/// One class of op.
#[derive(Debug, PartialEq)]
pub(super) struct Class {
    /// Its name in a workflow.
    pub(super) name: &'static str,
    /// What it does.
    pub(super) action: Action,
    /// Its inputs, in the order in which the action takes them.
    pub(super) inputs: &'static [Input],
    /// What its output slots give.
    pub(super) outputs: &'static [Kind],
}

/// What an op does with its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    LoadImage,
    EmptyImage,
    Invert,
    Crop,
    Scale,
    MaskToImage,
    /// Writes each picture of the batch to a file.
    Save,
    /// Gives its first input on.
    Pass,
}

/// One input of a class.
#[derive(Debug, PartialEq)]
pub(super) struct Input {
    /// Its name in a workflow.
    pub(super) name: &'static str,
    /// What it takes.
    pub(super) kind: Kind,
    /// What it takes if it is not given; none if it must be.
    pub(super) default: Option<&'static str>,
}

/// What an input takes or an output slot gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// A batch of pictures, by link only.
    Image,
    /// A batch of masks, by link only.
    Mask,
    /// A whole number in a range.
    Int { min: i64, max: i64 },
    /// A number.
    Float,
    /// A text.
    Text,
    /// True or false.
    Bool,
    /// One of ComfyUI's choices, of which the built-in engine has the first `ours`.
    Choice { all: &'static [&'static str], ours: usize },
    /// The name of one of the run's files.
    File,
    /// Anything.
    Any,
}

impl Kind {
    /// ComfyUI's word for it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Image => "IMAGE",
            Self::Mask => "MASK",
            Self::Int { .. } => "INT",
            Self::Float => "FLOAT",
            Self::Text => "STRING",
            Self::Bool => "BOOLEAN",
            Self::Choice { .. } | Self::File => "COMBO",
            Self::Any => "*",
        }
    }

    /// Whether an output of this kind may be linked to an input of the other.
    pub(super) fn fits(self, input: Self) -> bool {
        let (given, taken) = (self.as_str(), input.as_str());
        given == taken || given == "*" || taken == "*"
    }
}

/// The class of that name, if the engine has it.
pub(super) fn find(name: &str) -> Option<&'static Class> {
    CLASSES.iter().find(|class| class.name == name)
}

const fn required(name: &'static str, kind: Kind) -> Input {
    Input { name, kind, default: None }
}

const fn class(
    name: &'static str,
    action: Action,
    inputs: &'static [Input],
    outputs: &'static [Kind],
) -> Class {
    Class { name, action, inputs, outputs }
}

const ANY_INT: Kind = Kind::Int { min: i64::MIN, max: i64::MAX };
const PRIMITIVE_INT: Kind = Kind::Int { min: -i64::MAX, max: i64::MAX };
const SIZE: Kind = Kind::Int { min: 1, max: MAX_RESOLUTION };
const PLACE: Kind = Kind::Int { min: 0, max: MAX_RESOLUTION };
const METHODS: Kind =
    Kind::Choice { all: &["nearest-exact", "bilinear", "area", "bicubic", "lanczos"], ours: 1 };
const CROPS: Kind = Kind::Choice { all: &["disabled", "center"], ours: 2 };

/// Every class of the engine.
pub(super) const CLASSES: &[Class] = &[
    class("LoadImage", Action::LoadImage, &[required("image", Kind::File)], &[Kind::Image, Kind::Mask]),
    class(
        "EmptyImage",
        Action::EmptyImage,
        &[
            required("width", SIZE),
            required("height", SIZE),
            required("batch_size", Kind::Int { min: 1, max: 4096 }),
            required("color", Kind::Int { min: 0, max: 0xff_ffff }),
        ],
        &[Kind::Image],
    ),
    class("ImageInvert", Action::Invert, &[required("image", Kind::Image)], &[Kind::Image]),
    class(
        "ImageCrop",
        Action::Crop,
        &[
            required("image", Kind::Image),
            required("width", SIZE),
            required("height", SIZE),
            required("x", PLACE),
            required("y", PLACE),
        ],
        &[Kind::Image],
    ),
    class(
        "ImageScale",
        Action::Scale,
        &[
            required("image", Kind::Image),
            required("upscale_method", METHODS),
            required("width", PLACE),
            required("height", PLACE),
            required("crop", CROPS),
        ],
        &[Kind::Image],
    ),
    class("MaskToImage", Action::MaskToImage, &[required("mask", Kind::Mask)], &[Kind::Image]),
    class(
        "SaveImage",
        Action::Save,
        &[required("images", Kind::Image), required("filename_prefix", Kind::Text)],
        &[],
    ),
    class(
        "PreviewImage",
        Action::Save,
        &[
            required("images", Kind::Image),
            Input { name: "filename_prefix", kind: Kind::Text, default: Some("ComfyUI_temp") },
        ],
        &[],
    ),
    class("PrimitiveInt", Action::Pass, &[required("value", PRIMITIVE_INT)], &[ANY_INT]),
    class("PrimitiveFloat", Action::Pass, &[required("value", Kind::Float)], &[Kind::Float]),
    class("PrimitiveString", Action::Pass, &[required("value", Kind::Text)], &[Kind::Text]),
    class("PrimitiveStringMultiline", Action::Pass, &[required("value", Kind::Text)], &[Kind::Text]),
    class("PrimitiveBoolean", Action::Pass, &[required("value", Kind::Bool)], &[Kind::Bool]),
    class("CPackInputImage", Action::LoadImage, &[required("image", Kind::File)], &[Kind::Image, Kind::Mask]),
    class("CPackInputString", Action::Pass, &[required("value", Kind::Text)], &[Kind::Text]),
    class("CPackInputInt", Action::Pass, &[required("value", ANY_INT)], &[ANY_INT]),
    class("CPackInputAny", Action::Pass, &[required("input", Kind::Any)], &[Kind::Any]),
    class(
        "CPackOutputImage",
        Action::Save,
        &[required("images", Kind::Image), required("filename_prefix", Kind::Text)],
        &[],
    ),
];

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn classes_are_as_object_info_gives_them() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/facts/comfyui/object_info.json");
        let recorded: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut compared = 0;
        for class in CLASSES {
            let Some(info) = recorded.get(class.name) else { continue };
            compared += 1;
            let outputs: Vec<&str> = class.outputs.iter().map(|kind| kind.as_str()).collect();
            assert_eq!(serde_json::json!(outputs), info["output"], "{}", class.name);
            for (name, [kind, options]) in required_inputs(info) {
                let input = class.inputs.iter().find(|input| input.name == name);
                let input = input.unwrap_or_else(|| panic!("{} lacks {name}", class.name));
                let word = if kind.is_array() { "COMBO" } else { kind.as_str().unwrap() };
                assert_eq!(input.kind.as_str(), word, "{} {name}", class.name);
                match input.kind {
                    Kind::Int { min, max } if options.get("min").is_some() => {
                        assert_eq!(
                            (options["min"].as_i64(), options["max"].as_i64()),
                            (Some(min), Some(max))
                        );
                    }
                    Kind::Choice { all, .. } => assert_eq!(serde_json::json!(all), kind),
                    _ => {}
                }
            }
        }
        assert_eq!(compared, 11);
    }

    fn required_inputs(info: &Value) -> Vec<(&str, [Value; 2])> {
        let inputs = info["input"]["required"].as_object().unwrap();
        inputs.iter().map(|(name, input)| (name.as_str(), [input[0].clone(), input[1].clone()])).collect()
    }
}
