//! Upstreams that send something now and then, or less than anybody would wait for.

use std::sync::mpsc;
use std::time::Duration;

use super::served::answering;
use super::*;

/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// Gives up below a thousand bytes a second.
fn impatient() -> Stores {
    let mut stores = Stores::new();
    let (silence, low_speed_time) = (Duration::from_secs(30), Duration::from_secs(1));
    stores.store.patience =
        Patience { silence, low_speed_limit: 1000, low_speed_time, ..Patience::default() };
    stores
}

/// The files in the store of an upstream that are not as git leaves them for good.
fn unfinished(stores: &Stores, pin: &GitPin) -> Vec<String> {
    let store = stores.store.repository(&pin.url, Came::Fetched).expect("made");
    let names = walk(store.path());
    names.into_iter().filter(|name| name.contains("_git2_") || name.ends_with(".lock")).collect()
}

fn walk(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let below = |path: PathBuf| match path.is_dir() {
        true => walk(&path),
        false => vec![path.display().to_string()],
    };
    entries.flat_map(below).collect()
}

#[test]
fn server_that_drips_is_given_up_wherever_it_begins_and_the_next_fetch_finds_nothing_in_its_way() {
    let upstream = Upstream::new();
    let made = upstream.commit(&[("main.py", 0o100644, &"text\n".repeat(10))]);
    for method in ["GET", "POST"] {
        let (stores, served) = (impatient(), Served::start(&upstream, true));
        let pin = served.pin(&made);
        served.drips.lock().expect("no panic").insert(method, Duration::from_millis(50));
        let error = stores.fetch(&pin).expect_err("it drips");
        assert!(matches!(error, GitError::Slow { .. }), "{method}: {error:?}");
        let said = error.to_string();
        let expected =
            [pin.url.as_str(), pin.commit.as_str(), "1000 bytes a second for 1 s", "node of the farm"];
        assert!(expected.iter().all(|word| said.contains(word)), "{said}");
        assert!(!stores.store.holds(&pin));
        assert_eq!(unfinished(&stores, &pin), [""; 0], "{method}");
        served.drips.lock().expect("no panic").clear();
        stores.fetch(&pin).expect("it has become a fast one");
        assert_eq!(stores.checkout(&pin).expect("laid out")["main.py"], "text\n".repeat(10));
    }
}

#[test]
fn server_that_drips_its_very_first_line_is_given_up() {
    let pin = answering(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX-Drip: ");
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let mut stores = Stores::new();
    let (connect, silence) = (Duration::from_secs(1), Duration::from_secs(1));
    stores.store.patience = Patience { connect, silence, ..Patience::default() };
    let error = stores.fetch(&pin).expect_err("no answer ever begins");
    assert!(matches!(error, GitError::Silent { .. }), "{error:?}");
}

#[test]
fn slow_uplink_that_keeps_to_the_lowest_speed_is_waited_for() {
    let upstream = Upstream::new();
    let made = upstream.commit(&[("main.py", 0o100644, "text\n")]);
    let (mut stores, served) = (impatient(), Served::start(&upstream, true));
    stores.store.patience.low_speed_limit = 10;
    let pin = served.pin(&made);
    let pause = Duration::from_millis(3);
    served.drips.lock().expect("no panic").extend([("GET", pause), ("POST", pause)]);
    stores.fetch(&pin).expect("it comes");
    assert_eq!(stores.checkout(&pin).expect("laid out")["main.py"], "text\n");
}

/// Does what hangs where something is wrong, and fails then.
fn in_time(test: fn()) {
    let (sender, receiver) = mpsc::sync_channel(1);
    let at_work = std::thread::spawn(move || {
        test();
        sender.send(())
    });
    let hangs = receiver.recv_timeout(DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout);
    assert!(!hangs, "it hangs");
    at_work.join().expect("no panic").expect("somebody waits");
}

#[test]
fn cancel_reaches_a_fetch_that_waits_for_a_byte() {
    in_time(|| {
        let upstream = Upstream::new();
        let made = upstream.commit(&[("main.py", 0o100644, "text\n")]);
        let (stores, served) = (Stores::new(), Served::start(&upstream, true));
        let pin = served.pin(&made);
        served.drips.lock().expect("no panic").insert("GET", Duration::from_secs(3600));
        let fetched = std::thread::scope(|scope| {
            let fetching = scope.spawn(|| stores.fetch(&pin));
            while served.requests.load(Ordering::Relaxed) == 0 && !fetching.is_finished() {
                std::thread::yield_now();
            }
            stores.cancel.cancel();
            fetching.join().expect("no panic")
        });
        assert!(matches!(fetched, Err(GitError::Canceled)), "{fetched:?}");
    });
}

#[test]
fn folder_whose_disk_does_not_answer_has_one_reader_and_is_asked_again_once_that_ended() {
    in_time(|| {
        hang("cancelled", Duration::from_secs(3600), |stores| stores.cancel.cancel());
        hang("silent", Duration::from_millis(200), |_| {});
    });
}

/// A folder that hangs and is given up, by this silence or as the caller has it.
fn hang(text: &str, silence: Duration, give_up: impl Fn(&Stores)) {
    let upstream = Upstream::new();
    let pin = upstream.commit(&[("main.py", 0o100644, text)]);
    let (start, rest) = pin.commit.as_str().split_at(2);
    let object = upstream.folder.path().join("objects").join(start).join(rest);
    let kept = fs::read(&object).expect("it is there");
    // Whoever opens it waits until somebody writes into it.
    fs::remove_file(&object).expect("removed");
    assert!(Command::new("mkfifo").arg(&object).status().expect("mkfifo is here").success());

    let mut stores = Stores::new();
    stores.store.patience.silence = silence;
    give_up(&stores);
    let error = stores.fetch(&pin).expect_err("it hangs");
    assert!(matches!(error, GitError::Canceled | GitError::Silent { .. }), "{error:?}");
    for _ in 0..3 {
        stores.fetch(&pin).expect_err("it still does");
    }
    assert_eq!(readers(&pin), 1, "{text}: however often it is asked");
    stores.cancel = CancellationToken::new();
    stores.store.patience.silence = Duration::from_secs(3600);
    let error = stores.fetch(&pin).expect_err("nobody waits beside the one that hangs");
    assert!(matches!(error, GitError::Silent { .. }), "{error:?}");

    let waiting = File::options().write(true).open(&object).expect("somebody waits for it");
    fs::remove_file(&object).expect("removed");
    fs::write(&object, kept).expect("written");
    drop(waiting);
    loop {
        match stores.fetch(&pin) {
            Ok(()) => break,
            Err(GitError::Silent { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(stores.checkout(&pin).expect("laid out")["main.py"], text);
}

/// How many threads of this process read this commit from a folder.
fn readers(pin: &GitPin) -> usize {
    let name = folder::reader_name(oid(&pin.commit));
    let threads = fs::read_dir("/proc/self/task").expect("it is Linux").flatten();
    let names = threads.flat_map(|thread| fs::read_to_string(thread.path().join("comm")));
    names.filter(|comm| comm.trim_end() == name).count()
}
