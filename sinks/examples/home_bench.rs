#[global_allocator]
static A: mimalloc::MiMalloc = mimalloc::MiMalloc;
use feedmill_model::*;
use feedmill_sinks::LocalHome;
use std::time::{Duration, Instant};
fn rss() -> usize {
    let s = std::fs::read_to_string("/proc/self/statm").unwrap();
    s.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
fn main() {
    let viewers = 1_000_000i64;
    let batches: usize = std::env::args().nth(1).map_or(8000, |a| a.parse().unwrap());
    let home = LocalHome::new(Parameters::default());
    let mut x = 0x1234_5678_9abc_def1u64;
    let mut rnd = move || { x ^= x << 13; x ^= x >> 7; x ^= x << 17; x };
    let mut time = 1_700_000_000_000u64;
    let mut c = HomeClosed::empty(Position { time, lsn: Lsn(0) }, u64::MAX);
    c.records = (1..=viewers).map(|viewer| (HomeRecordChange::Active { viewer }, 1)).collect();
    let t = Instant::now();
    home.apply(&mut c).unwrap();
    println!("records {:?}", t.elapsed());
    let base = rss();
    let mut total = Duration::ZERO;
    let mut n = 0u64;
    let mut seq = 0u16;
    for b in 0..batches {
        time += 10;
        c.position.time = time;
        seq = 0;
        for _ in 0..60 {
            seq += 1;
            let entry = PackedEntry::new(EntryId::tweet(id_at(time as i64, seq))).unwrap();
            for _ in 0..200 {
                let viewer = 1 + (rnd() % viewers as u64) as i64;
                c.deliveries[shard_of(viewer) as usize].push(Delivery { viewer, entry, diff: 1 });
            }
        }
        let t = Instant::now();
        home.apply(&mut c).unwrap();
        total += t.elapsed();
        n += 12_000;
        if b % (batches / 8) == batches / 8 - 1 {
            println!("{} per viewer: {:.2} M/s so far, {:.2} B/entry over base (base {} MB)", n as f64 / viewers as f64, n as f64 / total.as_secs_f64() / 1e6, (rss() - base) as f64 / n as f64, base >> 20);
        }
    }
    let _ = seq;
    println!("anomalies {} deliveries {}", home.anomalies(), home.deliveries());
}
