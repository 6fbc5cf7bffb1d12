//! The messages as bytes, and what hostile bytes come to.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::codec::{CodecError, HEADER, MAX_FRAME, Message, decode_header, encode};
use crate::job::RunErrorKind;
use crate::offer::{Device, Engine, SlotOffer};

fn lease() -> Lease {
    let id = LeaseId { epoch: 2, counter: 3 };
    Lease { id, job: JobId(Uuid::from_u128(4)), run: RunId(Uuid::from_u128(5)) }
}

fn decode<M: Message>(frame: &[u8]) -> Result<Option<M>, CodecError> {
    let header = frame[..HEADER].try_into().expect("a whole header");
    let (kind, length) = decode_header(header, MAX_FRAME)?;
    assert_eq!(length, frame.len() - HEADER);
    M::decode_body(kind, &frame[HEADER..])
}

/// These bytes are the protocol. Where one changes, the protocol's version must as well.
#[test]
fn frames_are_the_golden_bytes() {
    let check = |message: NodeMessage, golden: &str| {
        let frame = encode(&message, MAX_FRAME).expect("encodes");
        assert_eq!(hex::encode(&frame), golden, "{message:?}");
        assert_eq!(decode(&frame), Ok(Some(message)));
    };
    let heartbeat = Heartbeat { leases: vec![lease().id] };
    check(NodeMessage::Heartbeat(heartbeat), "1a0000000101010000000000000002000000000000000300000000000000");
    let phase = PhaseChanged { lease: lease().id, phase: Phase::Executing };
    check(NodeMessage::PhaseChanged(phase), "1600000004010200000000000000030000000000000003000000");
    let refused = Refused { lease: lease(), refusal: Refusal::Draining };
    check(
        NodeMessage::Refused(refused),
        "460000000301020000000000000003000000000000001000000000000000\
         000000000000000000000000000000041000000000000000\
         0000000000000000000000000000000501000000",
    );
    let storage = Storage { room: 7, pinned: vec![BlobHash([1; 32])] };
    let ones = "01".repeat(32);
    check(NodeMessage::Storage(storage), &format!("320000000c8107000000000000000100000000000000{ones}"));
    let frame = PreviewFrame::of(b"\xff\xd8\xff").expect("it begins as a JPEG");
    let preview = RunPreview { lease: lease().id, frame };
    check(
        NodeMessage::RunPreview(preview),
        "1d0000001181020000000000000003000000000000000300000000000000ffd8ff",
    );
    let workflow = WorkflowVersion { name: "fox".parse().expect("a name"), version: 3 };
    check(
        NodeMessage::SelfTested(SelfTested { workflow, failure: None }),
        "1200000012810300000000000000666f780300000000",
    );
    let slots = [(SlotId(2), [LockfileHash(BlobHash([1; 32]))].into())].into();
    check(
        NodeMessage::WarmSlots(WarmSlots { slots }),
        &format!("340000001381010000000000000002000100000000000000{ones}"),
    );
    let watch = WatchRun { lease: lease().id };
    let frame = encode(&CoordinatorMessage::WatchRun(watch), MAX_FRAME).expect("encodes");
    assert_eq!(hex::encode(&frame), "12000000098202000000000000000300000000000000");
    let keep = Keep { blob: BlobRef { hash: BlobHash([1; 32]), size: 9 }, providers: vec![] };
    let frame = encode(&CoordinatorMessage::Keep(keep), MAX_FRAME).expect("encodes");
    assert_eq!(hex::encode(&frame), format!("320000000782{ones}09000000000000000000000000000000"));
    let recorded = EndRecorded { run: lease().run, job: lease().job };
    let frame = encode(&CoordinatorMessage::EndRecorded(recorded), MAX_FRAME).expect("encodes");
    let golden = "32000000030210000000000000000000000000000000000000000000000510000000000000\
                  0000000000000000000000000000000004";
    assert_eq!(hex::encode(&frame), golden);
}

#[test]
fn registration_survives_the_codec() {
    let device = Device::Gpu { name: "RTX".into(), uuid: "GPU-1".into(), memory: 24 << 30 };
    let offer = Offer {
        host_name: "studio".into(),
        agent_version: "0.1.0".into(),
        platform: "linux-x86_64".into(),
        engine: Engine::Attached { comfyui_version: "0.3.75".into() },
        classes: ["LoadImage".to_owned()].into(),
        models: ["checkpoints/x.safetensors".to_owned()].into(),
        slots: vec![SlotOffer { id: SlotId(0), device }],
    };
    let ended = RunEnded {
        lease: lease(),
        outcome: Outcome::Failed(RunError::new(RunErrorKind::Stalled, "no progress")),
        fetched: vec![Fetched { blob: BlobRef::of(b"x"), from: PeerId([1; 32]), bytes: 1 }],
        executed: Duration::from_millis(3),
    };
    let register = Register {
        offer,
        data_addresses: vec![
            "192.0.2.7:4290".parse().expect("an address"),
            "[::1]:1".parse().expect("an address"),
        ],
        leases: vec![HeldLease { lease: lease(), slot: SlotId(0), phase: Phase::Fetching }],
        ended: vec![ended],
        draining: true,
    };
    let message = NodeMessage::Register(register);
    let frame = encode(&message, MAX_FRAME).expect("encodes");
    assert_eq!(decode(&frame), Ok(Some(message)));
}

#[test]
fn unknown_kinds_are_skipped_only_where_they_say_so() {
    assert_eq!(NodeMessage::decode_body(0x8abc, b"anything"), Ok(None));
    assert_eq!(NodeMessage::decode_body(0x0abc, b""), Err(CodecError::UnknownKind(0x0abc)));
    // A coordinator's message is none of a node's.
    assert_eq!(NodeMessage::decode_body(0x0203, b""), Err(CodecError::UnknownKind(0x0203)));
}

#[test]
fn frame_is_refused_by_its_length_before_its_body() {
    let header = [0xff, 0xff, 0xff, 0xff, 0x00, 0x01];
    let refused = CodecError::TooLarge { length: u32::MAX as usize, limit: MAX_FRAME };
    assert_eq!(decode_header(header, MAX_FRAME), Err(refused));
    assert_eq!(decode_header([1, 0, 0, 0, 0, 1], MAX_FRAME), Err(CodecError::TooShort(1)));
}

#[test]
fn body_with_more_than_its_message_is_refused() {
    let mut frame =
        encode(&NodeMessage::Heartbeat(Heartbeat { leases: vec![] }), MAX_FRAME).expect("encodes");
    frame.push(0);
    assert!(NodeMessage::decode_body(0x0101, &frame[HEADER..]).is_err());
}

proptest! {
    #[test]
    fn hostile_bodies_never_panic(kind in 0u16..0x0300, body in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = NodeMessage::decode_body(kind, &body);
        let _ = CoordinatorMessage::decode_body(kind, &body);
        let _ = JoinMessage::decode_body(kind, &body);
        let _ = GateMessage::decode_body(kind, &body);
    }

    #[test]
    fn progress_survives_the_codec(epoch: u64, counter: u64, fraction in 0f32..=1.0, detail in proptest::option::of(".*")) {
        let progress = Progress { phase: Phase::Executing, fraction, detail };
        let message = NodeMessage::RunProgress(RunProgress { lease: LeaseId { epoch, counter }, progress });
        let frame = encode(&message, MAX_FRAME).expect("encodes");
        prop_assert_eq!(decode(&frame), Ok(Some(message)));
    }
}
