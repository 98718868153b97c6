//! What users see of the filter's work: events for one reader, and the top sources for all.

use std::process;
use std::thread;
use std::time::{Duration, Instant};

use portcullis::config::FilterMode;
use portcullis::filter::{self, Error, Event, Events};
use portcullis_tests::root;

use crate::scene::{GATE4, LISTED4, LISTED6, Scene, dropped};

/// Waits for an event.
fn next(scene: &Scene, events: &mut Events) -> anyhow::Result<Option<Event>> {
    let names = filter::slot_names(&scene.pin_path)?;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(1) {
        if let Some(event) = events.next(&names) {
            return Ok(Some(event));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(None)
}

#[test]
fn a_drop_is_an_event_for_one_reader_at_a_time() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut filter = scene.attach(&scene.settings())?;
    assert!(!scene.reaches(LISTED4, 25), "there is no reader");
    let mut events = Events::open(&scene.pin_path)?;
    events.become_reader()?;
    assert_eq!(
        next(&scene, &mut events)?,
        None,
        "what was before is not told"
    );
    assert!(!scene.reaches(LISTED6, 25));
    let told = next(&scene, &mut events)?.expect("an event");
    let expected = Event {
        age: told.age,
        source: LISTED6.parse()?,
        reason: "listed",
        list: Some("spammers".to_owned()),
        interface: Some("wan".to_owned()),
        port: Some(25),
        monitored: false,
    };
    assert_eq!(told, expected);
    assert!(told.age < Duration::from_secs(2));

    let mut second = filter.take_events().expect("the owner has them");
    match second.become_reader() {
        Err(Error::EventsTaken { reader }) => {
            assert_eq!(reader.map(|reader| reader.process), Some(process::id()));
        }
        other => panic!("two readers: {other:?}"),
    }
    drop(events);
    second.become_reader()?;
    let mut settings = scene.settings();
    settings.mode = FilterMode::Monitor;
    filter.update_settings(&settings)?;
    assert!(scene.reaches(LISTED4, 25));
    let told = next(&scene, &mut second)?.expect("an event of the second turn");
    assert!(told.monitored && told.source.is_ipv4(), "{told:?}");
    Ok(())
}

#[test]
fn the_top_sources_are_seen_by_one_who_reads_nothing() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let mut filter = scene.attach(&scene.settings())?;
    let mut events = filter.take_events().expect("the owner has them");
    assert!(!scene.status().top_sources.watched);
    events.become_reader()?;
    for source in [LISTED4, LISTED6, LISTED4] {
        assert!(!scene.reaches(source, 25));
    }
    events.count_all();
    events.announce()?;
    let top = scene.status().top_sources;
    assert!(top.watched && top.age_seconds == Some(0), "{top:?}");
    let sources: Vec<_> = top
        .sources
        .iter()
        .map(|top| (top.source.as_str(), top.recent_events, top.list.as_deref()))
        .collect();
    let spammers = Some("spammers");
    assert_eq!(
        sources,
        [(LISTED4, 2, spammers), ("2001:db8::/64", 1, spammers)]
    );
    drop(events);
    let top = scene.status().top_sources;
    assert!(
        !top.watched && top.sources.len() == 2,
        "they stay, with their age"
    );
    Ok(())
}

#[test]
fn a_flood_that_is_watched_is_dropped_and_counted_whole_and_told_as_a_sample() -> anyhow::Result<()>
{
    if !root() {
        return Ok(());
    }
    const PACKETS: u32 = 300_000;
    let scene = Scene::new()?;
    let mut filter = scene.attach(&scene.settings())?;
    let mut trial = filter.trial()?;
    let mut events = filter.take_events().expect("the owner has them");
    let names = filter::slot_names(&scene.pin_path)?;
    let syn = syn_from_listed()?;
    let before = dropped(&scene.status(), "spammers");
    events.become_reader()?;
    assert!(trial.run(&syn, PACKETS)?.dropped);
    let told = std::iter::from_fn(|| events.next(&names)).count();
    // As many as the buffer can hold, and as the limit allows in a second, or in two.
    assert!((100..=4_000).contains(&told), "{told} events");
    // The next second has events again, from its first packet on.
    thread::sleep(Duration::from_millis(1_100));
    events.announce()?;
    assert!(trial.run(&syn, 1)?.dropped);
    assert!(next(&scene, &mut events)?.is_some());
    let counted = dropped(&scene.status(), "spammers") - before;
    assert_eq!(counted, u64::from(PACKETS) + 1);
    Ok(())
}

/// A SYN to port 25 in an Ethernet frame.
fn syn_from_listed() -> anyhow::Result<Vec<u8>> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
    frame.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0]);
    for address in [LISTED4, GATE4] {
        frame.extend(address.parse::<std::net::Ipv4Addr>()?.octets());
    }
    frame.extend([
        0x80, 0, 0, 25, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    Ok(frame)
}
