//! One prompt as its WebSocket events tell it: a state machine that takes events and says what they
//! mean. It reads no socket and no clock.
//!
//! Not here: how a prompt ended. The history is the truth of that; this remembers it for the case that
//! the history is gone.

use std::collections::BTreeSet;

use protocol::{PreviewFrame, Workflow, link_of};
use serde_json::{Map, Value};

use super::events::{Event, Exception, Message};

/// What is known of one prompt.
#[derive(Debug)]
pub(super) struct Session {
    prompt: String,
    /// The ops that its outputs need.
    needed: BTreeSet<String>,
    finished: BTreeSet<String>,
    /// The op at work, and how far it is.
    current: Option<(String, f32)>,
    verdict: Option<Verdict>,
    outputs: Map<String, Value>,
    /// The newest picture in the making, until it is taken.
    frame: Option<PreviewFrame>,
}

/// How a prompt ended, by its events.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    Succeeded,
    Failed(Exception),
    Interrupted,
}

/// What an event means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happened {
    /// Nothing for this prompt.
    Nothing,
    /// The prompt is at work.
    Moved,
    /// It is decided how it ends, and the history will soon say so.
    Decided,
    /// It ended: the history says how.
    Ended,
}

impl Session {
    /// A prompt that was just queued.
    pub(super) fn new(prompt: &str, workflow: &Workflow, outputs: &[String]) -> Self {
        Self {
            prompt: prompt.to_owned(),
            needed: needed(workflow, outputs),
            finished: BTreeSet::new(),
            current: None,
            verdict: None,
            outputs: Map::new(),
            frame: None,
        }
    }

    /// Takes in one message.
    pub(super) fn apply(&mut self, message: Message) -> Happened {
        // What names no prompt is ours: only we are told under our client's id.
        if message.prompt.is_some_and(|prompt| prompt != self.prompt) {
            return Happened::Nothing;
        }
        match message.event {
            Event::Other => return Happened::Nothing,
            Event::Started => {}
            Event::Preview(frame) => self.frame = frame.or(self.frame.take()),
            Event::Cached(ops) => self.finished.extend(ops),
            Event::Executing(op) => self.begin(op, 0.0),
            Event::Progress { op, fraction } => self.begin(op, fraction),
            Event::States(states) => {
                for state in states {
                    if state.finished {
                        self.finished.insert(state.op);
                    } else {
                        self.begin(state.op, state.fraction);
                    }
                }
            }
            Event::Executed { op, output } => {
                self.finished.insert(op.clone());
                if let Some(output) = output {
                    self.outputs.insert(op, Value::Object(output));
                }
            }
            Event::Succeeded => return self.decide(Verdict::Succeeded),
            Event::Failed(exception) => return self.decide(Verdict::Failed(exception)),
            Event::Interrupted => return self.decide(Verdict::Interrupted),
            Event::Idle => return Happened::Ended,
        }
        Happened::Moved
    }

    /// How much of the prompt is done, from 0 to 1, if it has work to do.
    pub(super) fn fraction(&self) -> f32 {
        let finished = self.needed.intersection(&self.finished).count() as f32;
        let current = self.current.as_ref().filter(|(op, _)| !self.finished.contains(op));
        let current = current.map_or(0.0, |(_, fraction)| *fraction);
        ((finished + current) / self.needed.len().max(1) as f32).min(1.0)
    }

    /// The op at work.
    pub(super) fn current(&self) -> Option<&str> {
        self.current.as_ref().map(|(op, _)| op.as_str())
    }

    /// The newest picture in the making, once.
    pub(super) fn take_frame(&mut self) -> Option<PreviewFrame> {
        self.frame.take()
    }

    /// How it ended and what it reported, by its events alone.
    pub(super) fn into_parts(self) -> (Option<Verdict>, Map<String, Value>) {
        (self.verdict, self.outputs)
    }

    fn begin(&mut self, op: String, fraction: f32) {
        match &mut self.current {
            Some((current, reached)) if *current == op => *reached = reached.max(fraction),
            current => {
                // The ops of a prompt follow one another: who is followed is done.
                if let Some((before, _)) = current.replace((op, fraction)) {
                    self.finished.insert(before);
                }
            }
        }
    }

    fn decide(&mut self, verdict: Verdict) -> Happened {
        self.verdict = Some(verdict);
        Happened::Decided
    }
}

/// The ops that these outputs need, themselves included.
fn needed(workflow: &Workflow, outputs: &[String]) -> BTreeSet<String> {
    let mut needed = BTreeSet::new();
    let mut open: Vec<&str> = outputs.iter().map(String::as_str).collect();
    while let Some(id) = open.pop() {
        let Some(op) = workflow.get(id) else { continue };
        if needed.insert(id.to_owned()) {
            open.extend(op.inputs.values().filter_map(link_of).map(|link| link.op));
        }
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::comfyui::events;

    /// What became of a recorded session.
    struct Replayed {
        happened: Vec<Happened>,
        fractions: Vec<f32>,
        /// The media types of the previews.
        frames: Vec<&'static str>,
        verdict: Option<Verdict>,
        outputs: Map<String, Value>,
    }

    fn recording(file: &str) -> Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/facts/comfyui/");
        serde_json::from_str(&std::fs::read_to_string(format!("{path}{file}")).unwrap()).unwrap()
    }

    /// Feeds a recorded session to the machine. Ops are `1` to `ops`, one after another.
    fn replay(recorded: &Value, ops: usize) -> Replayed {
        let lines = recorded.as_array().unwrap();
        let prompt = lines.iter().find_map(|line| line["body"]["prompt_id"].as_str()).unwrap();
        let ids: Vec<String> = (1..=ops).map(|id| id.to_string()).collect();
        let op = |_: &String| protocol::Op { class_type: "Any".into(), ..Default::default() };
        let workflow = ids.iter().map(|id| (id.clone(), op(id))).collect();
        let mut session = Session::new(prompt, &workflow, &ids);
        let (mut happened, mut fractions, mut frames) = (Vec::new(), Vec::new(), Vec::new());
        for line in lines {
            let message = match line["type"].as_str() {
                Some(kind) => events::from_parts(kind, line["data"].clone()),
                None if line["event_type"].is_u64() => {
                    let head = hex::decode(line["head_hex"].as_str().unwrap()).unwrap();
                    events::from_binary(&head).unwrap()
                }
                None => continue,
            };
            happened.push(session.apply(message));
            fractions.push(session.fraction());
            frames.extend(session.take_frame().map(|frame| frame.media_type()));
        }
        let (verdict, outputs) = session.into_parts();
        Replayed { happened, fractions, frames, verdict, outputs }
    }

    fn check_ends(replayed: &Replayed, end: &[Happened]) {
        let tail: Vec<Happened> =
            replayed.happened.iter().copied().skip_while(|happened| *happened != Happened::Decided).collect();
        assert_eq!(tail, end);
        assert!(replayed.fractions.is_sorted(), "progress never goes back: {:?}", replayed.fractions);
    }

    #[test]
    fn successful_sessions_end_with_their_outputs() {
        let check = |file: &str, ops: usize, output: &str, name: &str| {
            let replayed = replay(&recording(file), ops);
            assert_eq!(replayed.verdict, Some(Verdict::Succeeded), "{file}");
            assert_eq!(replayed.outputs[output]["images"][0]["filename"], name, "{file}");
            let last = *replayed.fractions.last().unwrap();
            assert_eq!(last, 1.0, "{file}");
            replayed
        };
        use Happened::{Decided, Ended, Nothing};
        let replayed = check("run-success.json", 5, "5", "cpack_output__00022_.png");
        assert!(replayed.happened.contains(&Decided));
        let replayed = check("0.3.75/preview-metadata-frames.json", 7, "7", "tiny-sd_00004_.png");
        check_ends(&replayed, &[Decided, Nothing, Ended]);
        assert_eq!(replayed.frames, ["image/jpeg"; 4]);
        let replayed = check("0.3.75/preview-legacy-frames.json", 7, "7", "tiny-sd_00005_.png");
        check_ends(&replayed, &[Decided, Nothing, Ended]);
        assert_eq!(replayed.frames, ["image/jpeg"; 4]);
    }

    #[test]
    fn session_with_a_model_reaches_its_end_step_by_step() {
        let replayed = replay(&recording("run-with-model.json"), 4);
        assert_eq!(replayed.verdict, Some(Verdict::Succeeded));
        let steps: BTreeSet<u32> = replayed.fractions.iter().map(|part| (part * 1000.0) as u32).collect();
        assert!(steps.len() > 3, "{steps:?}");
        assert!(replayed.fractions.is_sorted(), "{:?}", replayed.fractions);
    }

    #[test]
    fn failed_sessions_tell_op_and_exception() {
        let check = |recorded: &Value, op: &str, class: &str, kind: &str| {
            let replayed = replay(recorded, 10);
            let Some(Verdict::Failed(exception)) = replayed.verdict else { panic!("{:?}", replayed.verdict) };
            assert_eq!((&*exception.op, &*exception.class, &*exception.kind), (op, class, kind));
            assert!(!exception.traceback.is_empty());
        };
        check(&recording("run-error.json"), "8", "CPackOutputFile", "FileNotFoundError");
        let exceptions = recording("0.3.75/run-exceptions.json");
        check(&exceptions["value_error"], "2", "TestFail", "ValueError");
        check(&exceptions["cuda_oom"], "2", "TestFail", "torch.OutOfMemoryError");
        check(&exceptions["big_message"], "2", "TestFail", "RuntimeError");
    }

    #[test]
    fn interrupted_sessions_are_told_from_failed_ones() {
        assert_eq!(replay(&recording("run-interrupted.json"), 5).verdict, Some(Verdict::Interrupted));
        let forms = recording("0.3.75/interrupt-forms.json");
        for form in ["global", "by_prompt_id", "not_interruptible_node"] {
            let replayed = replay(&forms[form], 3);
            assert_eq!(replayed.verdict, Some(Verdict::Interrupted), "{form}");
            check_ends(&replayed, &[Happened::Decided, Happened::Nothing, Happened::Ended]);
        }
        assert_eq!(replay(&forms["other_prompt_id"], 3).verdict, Some(Verdict::Succeeded));
    }

    #[test]
    fn session_goes_on_after_a_reconnect_in_its_middle() {
        let mut recorded = recording("0.3.75/reconnect.json");
        let prompt = recorded[3]["data"]["prompt_id"].clone();
        recorded[0] = serde_json::json!({"body": {"prompt_id": prompt}});
        let replayed = replay(&recorded, 3);
        assert_eq!(replayed.verdict, Some(Verdict::Succeeded));
        assert_eq!(replayed.happened[1], Happened::Moved, "`executing` without a prompt is ours");
        assert!(replayed.fractions.is_sorted());
    }

    #[test]
    fn process_that_dies_leaves_no_verdict() {
        let exit = recording("0.3.75/process-exit.json");
        assert_eq!(replay(&exit["exit"], 3).verdict, None);
        let died = recording("0.3.75/prompt-worker-died.json");
        let session = &died[1]["the next prompt"];
        let replayed = replay(session, 3);
        assert_eq!(replayed.verdict, None);
        assert!(!replayed.happened.contains(&Happened::Moved), "nothing moves: the watchdog must see it");
    }

    #[test]
    fn events_of_another_prompt_mean_nothing() {
        let mut session = Session::new("ours", &Workflow::default(), &[]);
        let message = |prompt: &str| Message { prompt: Some(prompt.into()), event: Event::Idle };
        assert_eq!(session.apply(message("theirs")), Happened::Nothing);
        assert_eq!(session.apply(message("ours")), Happened::Ended);
    }
}
