//! What clients ask: a weighted grammar of requests, right ones and wrong ones.
//!
//! Texts are shared between clients where sharing could go wrong, names are few, and session state
//! is set and read back. Next on the path: `oracle.rs`.

use pgwire::{tag, write};

use super::Client;
use crate::backend::sql::tag_text;
use crate::rng::Rng;
use crate::wire::{Wire, take_message};

/// Names of statements with one parameter, then of those without.
const WITH_PARAM: [&str; 4] = ["", "p0", "p1", "p2"];
const WITHOUT_PARAM: [&str; 3] = ["", "q0", "q1"];

impl Client {
    /// Asks for something.
    pub(crate) fn act(&mut self, wire: &mut Wire, rng: &mut Rng) {
        if self.copying {
            return self.copy_on(wire, rng);
        }
        match rng.weighted(&[30, 12, 30, 10, 4, 3, 2, 1]) {
            0 => {
                let text = self.simple_text(rng);
                self.query(&text, wire);
            }
            1 => {
                let text = if rng.percent(40) { "BEGIN" } else { self.end_text(rng) };
                let text = self.tagged(text);
                self.query(&text, wire);
            }
            2 => self.prepared_batch(wire, rng),
            3 => self.wild_batch(wire, rng),
            4 => self.copy_from(wire, rng),
            5 => self.several(wire, rng),
            6 => self.function_call(wire),
            _ => self.prepared_reset(wire, rng),
        }
    }

    fn tagged(&self, text: &str) -> String {
        format!("{text} /* {} */", tag_text(self.tag))
    }

    fn send(&mut self, wire: &mut Wire, write: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = Vec::new();
        write(&mut bytes);
        while let Ok(Some(message)) = take_message(&mut bytes) {
            self.say(message, wire);
        }
    }

    /// Sends a simple Query.
    pub(crate) fn query(&mut self, text: &str, wire: &mut Wire) {
        self.has_reset |= text.contains("RESET ALL") || text.contains("DISCARD ALL");
        self.copying = text.starts_with("COPY t FROM");
        self.send(wire, |out| write::query(out, text.as_bytes()));
    }

    fn end_text(&self, rng: &mut Rng) -> &'static str {
        rng.pick(&["COMMIT", "COMMIT", "ROLLBACK"])
    }

    fn plain_text(&self, rng: &mut Rng) -> String {
        let own = tag_text(self.tag);
        let text = match rng.below(6) {
            0 => format!("SELECT '{own}' FROM generate_series(1, {})", 1 + rng.below(40)),
            1 if rng.percent(20) => format!("SELECT pg_sleep({})", 500 + rng.below(2000)),
            1 => format!("SELECT pg_sleep({})", 1 + rng.below(60)),
            2 => "SELECT 1/0".to_owned(),
            3 => format!("COPY (SELECT x FROM generate_series(1, {}) x) TO STDOUT", rng.below(20)),
            _ => format!("SELECT '{own}'"),
        };
        self.tagged(&text)
    }

    /// A statement about the session's state.
    fn state_text(&self, rng: &mut Rng) -> String {
        let own = tag_text(self.tag);
        let text = match rng.below(24) {
            0 | 1 => format!("SET work_mem TO '{own}'"),
            2 => format!("SET LOCAL work_mem TO '{own}'"),
            3..=5 => "SHOW work_mem".to_owned(),
            6 => "RESET work_mem".to_owned(),
            7 => "SET TimeZone TO 'Asia/Tokyo'".to_owned(),
            8 => format!("SET application_name TO '{own}'"),
            // Inside a transaction the proxy does not undo what a RESET ALL did to it.
            9 if !self.has_reset => "SHOW application_name".to_owned(),
            10 => "CREATE TEMP TABLE t (x text)".to_owned(),
            11 => "SELECT x FROM pg_temp.t".to_owned(),
            12 => "LISTEN news".to_owned(),
            13 => "SELECT pg_advisory_lock(7)".to_owned(),
            14 => "SELECT nextval('s')".to_owned(),
            15 => "SELECT currval('s')".to_owned(),
            16 => format!("PREPARE p1 (text) AS SELECT 'sql of {own}'"),
            17 => "EXECUTE p1('x')".to_owned(),
            18 => "DEALLOCATE p1".to_owned(),
            19 => "DEALLOCATE ALL".to_owned(),
            20 => "RESET ALL".to_owned(),
            21 => "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;".to_owned(),
            _ => "DISCARD ALL".to_owned(),
        };
        self.tagged(&text)
    }

    fn simple_text(&self, rng: &mut Rng) -> String {
        match rng.below(20) {
            0 => String::new(),
            1 => ";".to_owned(),
            2 => self.tagged("SELEC"),
            3..=6 => self.state_text(rng),
            _ => self.plain_text(rng),
        }
    }

    /// Several statements in one text.
    fn several(&mut self, wire: &mut Wire, rng: &mut Rng) {
        let own = tag_text(self.tag);
        let rows = format!("SELECT '{own}'");
        let set = format!("SET work_mem TO '{own}'");
        let parts =
            [rows.as_str(), "SELECT 1/0", "BEGIN", "COMMIT", &set, "ROLLBACK", "SHOW work_mem"];
        let text: Vec<&str> = (0..2 + rng.index(3)).map(|_| rng.pick(&parts)).collect();
        let text = self.tagged(&text.join("; "));
        self.query(&text, wire);
    }

    fn function_call(&mut self, wire: &mut Wire) {
        let mut body = 1_u32.to_be_bytes().to_vec();
        body.extend([0; 6]);
        self.say((tag::FUNCTION_CALL, body), wire);
    }

    fn parse(&mut self, name: &str, text: &str, wire: &mut Wire) {
        self.has_reset |= text.contains("RESET ALL");
        self.send(wire, |out| write::parse(out, name.as_bytes(), text.as_bytes(), &[]));
    }

    fn bind(&mut self, portal: &str, name: &str, with_param: bool, wire: &mut Wire) {
        let own = tag_text(self.tag);
        let mut rest = vec![0, 0];
        if with_param {
            rest.extend([0, 1]);
            rest.extend((own.len() as u32).to_be_bytes());
            rest.extend(own.as_bytes());
        } else {
            rest.extend([0, 0]);
        }
        rest.extend([0, 0]);
        self.send(wire, |out| {
            write::bind_head(out, portal.as_bytes(), name.as_bytes(), rest.len());
            out.extend(&rest);
        });
    }

    fn sync(&mut self, wire: &mut Wire) {
        self.send(wire, write::sync);
    }

    /// One of the texts with a parameter that clients share.
    fn shared_text(rng: &mut Rng) -> String {
        let which = rng.below(6);
        format!("SELECT $1::text, 's{which}' FROM generate_series(1, {})", 1 + which)
    }

    fn unshared_text(&self, rng: &mut Rng) -> String {
        match rng.below(12) {
            0 | 1 => "BEGIN".to_owned(),
            2..=4 => self.end_text(rng).to_owned(),
            5 => self.tagged("SELEC"),
            6 => self.tagged("SHOW work_mem"),
            7 => self.tagged(&format!("SET work_mem TO '{}'", tag_text(self.tag))),
            8 => self.tagged("RESET ALL"),
            9 => self.tagged("BEGIN"),
            _ => self.plain_text(rng),
        }
    }

    /// Batches as drivers send them.
    fn prepared_batch(&mut self, wire: &mut Wire, rng: &mut Rng) {
        for _ in 0..rng.pick(&[1, 1, 1, 2, 3]) {
            let with_param = rng.percent(70);
            let name = if with_param { rng.pick(&WITH_PARAM) } else { rng.pick(&WITHOUT_PARAM) };
            if rng.percent(20) && !name.is_empty() {
                self.send(wire, |out| write::close(out, b'S', name.as_bytes()));
            }
            if rng.percent(if name.is_empty() { 90 } else { 40 }) {
                let text =
                    if with_param { Self::shared_text(rng) } else { self.unshared_text(rng) };
                self.parse(name, &text, wire);
            }
            if rng.percent(20) {
                self.send(wire, |out| write::describe(out, b'S', name.as_bytes()));
            }
            let portal = if rng.percent(15) { "c0" } else { "" };
            self.bind(portal, name, with_param, wire);
            if rng.percent(20) {
                self.send(wire, |out| write::describe(out, b'P', portal.as_bytes()));
            }
            let limit = rng.pick(&[0, 0, 0, 1, 2]);
            self.send(wire, |out| write::execute(out, portal.as_bytes(), limit));
            if limit > 0 {
                self.send(wire, |out| write::execute(out, portal.as_bytes(), 0));
            }
        }
        match rng.below(10) {
            // The Sync comes later, if at all.
            0 => self.send(wire, write::flush),
            1 => {
                self.sync(wire);
                self.sync(wire);
            }
            _ => self.sync(wire),
        }
    }

    /// A reset by the extended protocol, and perhaps some use of names behind it in its own batch.
    fn prepared_reset(&mut self, wire: &mut Wire, rng: &mut Rng) {
        self.has_reset = true;
        let text = self.tagged(rng.pick(&["DISCARD ALL", "DEALLOCATE ALL"]));
        self.parse("", &text, wire);
        self.bind("", "", false, wire);
        self.send(wire, |out| write::execute(out, b"", 0));
        if rng.percent(50) {
            return self.wild_batch(wire, rng);
        }
        self.sync(wire);
    }

    /// Messages in any order.
    fn wild_batch(&mut self, wire: &mut Wire, rng: &mut Rng) {
        for _ in 0..1 + rng.index(6) {
            let with_param = rng.percent(60);
            let name = if with_param { rng.pick(&WITH_PARAM) } else { rng.pick(&WITHOUT_PARAM) };
            match rng.below(9) {
                0 | 1 => {
                    let text =
                        if with_param { Self::shared_text(rng) } else { self.unshared_text(rng) };
                    self.parse(name, &text, wire);
                }
                2 => self.bind("", name, with_param, wire),
                3 => self.send(wire, |out| write::execute(out, b"", 0)),
                4 => self.send(wire, |out| write::close(out, b'S', name.as_bytes())),
                5 => self.send(wire, |out| write::describe(out, b'S', name.as_bytes())),
                6 => self.send(wire, write::flush),
                7 => self.send(wire, |out| write::close(out, b'P', b"c0")),
                _ => {
                    if rng.percent(30) {
                        let text = self.plain_text(rng);
                        self.query(&text, wire);
                    }
                }
            }
        }
        if rng.percent(85) {
            self.sync(wire);
        }
    }

    /// COPY FROM STDIN; the data follows at once or later.
    fn copy_from(&mut self, wire: &mut Wire, rng: &mut Rng) {
        let text = self.tagged("COPY t FROM STDIN");
        if rng.percent(60) {
            self.query(&text, wire);
        } else {
            self.parse("", &text, wire);
            self.bind("", "", false, wire);
            self.send(wire, |out| write::execute(out, b"", 0));
            if rng.percent(50) {
                self.sync(wire);
            }
            self.copying = true;
        }
        if rng.percent(50) {
            self.copy_on(wire, rng);
        }
    }

    fn copy_on(&mut self, wire: &mut Wire, rng: &mut Rng) {
        let own = tag_text(self.tag);
        for _ in 0..rng.index(5) {
            let data = if rng.percent(5) { "bad\n".to_owned() } else { format!("{own}\n") };
            self.send(wire, |out| write::copy_data(out, data.as_bytes()));
        }
        if rng.percent(20) {
            return;
        }
        self.end_copy(rng.percent(20), wire);
    }

    fn end_copy(&mut self, fails: bool, wire: &mut Wire) {
        self.copying = false;
        if fails {
            self.send(wire, |out| write::copy_fail(out, b"by the client"));
        } else {
            self.send(wire, write::copy_done);
        }
        self.sync(wire);
    }

    /// Ends whatever is open, and asks for its own tag a last time.
    pub(crate) fn conclude(&mut self, wire: &mut Wire) {
        if self.copying {
            self.end_copy(true, wire);
        }
        self.sync(wire);
        let text = self.tagged("ROLLBACK");
        self.query(&text, wire);
        self.ask_own_tag(wire);
    }

    /// Asks for its own tag.
    pub(crate) fn ask_own_tag(&mut self, wire: &mut Wire) {
        let text = self.tagged(&format!("SELECT '{}'", tag_text(self.tag)));
        self.query(&text, wire);
    }

    /// Asks for a statement that runs for 20 seconds.
    pub(crate) fn ask_for_sleep(&mut self, wire: &mut Wire) {
        let text = self.tagged("SELECT pg_sleep(20000)");
        self.query(&text, wire);
    }

    /// Says goodbye.
    pub(crate) fn terminate(&mut self, wire: &mut Wire) {
        self.left = true;
        let mut bytes = Vec::new();
        write::terminate(&mut bytes);
        wire.to_core.extend(bytes);
    }

    /// Sends what no client sends.
    pub(crate) fn be_rude(&mut self, wire: &mut Wire, rng: &mut Rng) {
        self.rude = true;
        self.uncertain = true;
        match rng.below(5) {
            0 => wire.to_core.extend([b'Q', 0, 0, 0, 3]),
            1 => wire.to_core.extend([b'Q', 0xFF, 0xFF, 0xFF, 0xFF, 1]),
            2 => wire.to_core.extend((0..20).map(|_| rng.next_u64() as u8)),
            3 => {
                // A long Query that is never ended.
                wire.to_core.extend([b'Q', 0x7F, 0xFF, 0xFF, 0xFF]);
                wire.to_core.extend(std::iter::repeat_n(b'x', 20_000));
            }
            _ => wire.to_core.extend([b'P', 0, 0, 0, 9, b'x', 0, b'y', 0, 0]),
        }
    }
}
