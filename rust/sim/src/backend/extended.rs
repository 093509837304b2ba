//! The extended protocol of a backend: Parse, Bind, Describe, Execute, Close.
//!
//! Errors come in PostgreSQL's order: the syntax before the failed transaction, the failed
//! transaction before a duplicate name (`exec_parse_message`, `exec_bind_message`). Next on the
//! path: `../server.rs`.

use pgwire::frontend::{BindNames, Execute, Named, Parse};
use pgwire::{tag, write};

use super::sql::{self, Op, Stmt};
use super::{Active, Backend, Fault, Rows, aborted};

/// A prepared statement.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    /// None for an empty text.
    pub(crate) stmt: Option<Stmt>,
    /// How many parameters it has.
    pub(crate) params: usize,
}

/// A portal.
#[derive(Clone, Debug)]
pub(crate) struct Portal {
    stmt: Option<Stmt>,
    param: Option<Vec<u8>>,
    /// What is left of its result once it has begun.
    pub(crate) rows: Option<Rows>,
    done: bool,
}

fn violation() -> Fault {
    Fault::new(b"08P01", "invalid message format")
}

impl Backend {
    pub(crate) fn extended(&mut self, tag: u8, body: &[u8]) -> Result<(), Fault> {
        match tag {
            tag::PARSE => self.parse(&Parse::read(body).map_err(|_| violation())?),
            tag::BIND => self.bind(body),
            tag::DESCRIBE => self.describe_named(&Named::read(body).map_err(|_| violation())?),
            tag::CLOSE => {
                let named = Named::read(body).map_err(|_| violation())?;
                match named.kind {
                    b'S' => drop(self.statements.remove(named.name)),
                    _ => drop(self.portals.remove(named.name)),
                }
                self.push(write::close_complete);
                Ok(())
            }
            _ => self.execute(&Execute::read(body).map_err(|_| violation())?),
        }
    }

    fn parse(&mut self, message: &Parse<'_>) -> Result<(), Fault> {
        if message.name.is_empty() {
            self.statements.remove(&b""[..]);
        }
        let statements =
            sql::read(message.query).ok_or_else(|| Fault::new(b"42601", "syntax error"))?;
        if statements.len() > 1 {
            let text = "cannot insert multiple commands into a prepared statement";
            return Err(Fault::new(b"42601", text));
        }
        let stmt = statements.into_iter().next();
        if self.failed && !stmt.as_ref().is_some_and(Stmt::is_exit) {
            return Err(aborted());
        }
        self.start_transaction();
        if self.statements.contains_key(message.name) {
            let name = String::from_utf8_lossy(message.name).into_owned();
            let text = format!("prepared statement \"{name}\" already exists");
            return Err(Fault::new(b"42P05", text));
        }
        let params = match &stmt {
            Some(Stmt { op: Op::Rows { param: true, .. }, .. }) => 1,
            _ => 0,
        };
        self.statements.insert(message.name.to_vec(), Prepared { stmt, params });
        self.push(write::parse_complete);
        Ok(())
    }

    fn bind(&mut self, body: &[u8]) -> Result<(), Fault> {
        let names = BindNames::read(body).ok_or_else(violation)?;
        let Some(prepared) = self.statements.get(names.statement).cloned() else {
            let name = String::from_utf8_lossy(names.statement).into_owned();
            let text = if name.is_empty() {
                "unnamed prepared statement does not exist".to_owned()
            } else {
                format!("prepared statement \"{name}\" does not exist")
            };
            return Err(Fault::new(b"26000", text));
        };
        let param = read_param(body.get(names.rest..).unwrap_or_default())?;
        if usize::from(param.is_some()) != prepared.params {
            return Err(Fault::new(b"08P01", "bind message supplies another number of parameters"));
        }
        if self.failed && !prepared.stmt.as_ref().is_some_and(Stmt::is_exit) {
            return Err(aborted());
        }
        self.start_transaction();
        if !names.portal.is_empty() && self.portals.contains_key(names.portal) {
            return Err(Fault::new(b"42P03", "cursor already exists"));
        }
        let portal = Portal { stmt: prepared.stmt, param, rows: None, done: false };
        self.portals.insert(names.portal.to_vec(), portal);
        self.push(write::bind_complete);
        Ok(())
    }

    fn describe_named(&mut self, named: &Named<'_>) -> Result<(), Fault> {
        let name = String::from_utf8_lossy(named.name).into_owned();
        let stmt = if named.kind == b'S' {
            let Some(prepared) = self.statements.get(named.name).cloned() else {
                let text = format!("prepared statement \"{name}\" does not exist");
                return Err(Fault::new(b"26000", text));
            };
            if self.failed && prepared.stmt.as_ref().is_some_and(Stmt::has_rows) {
                return Err(aborted());
            }
            self.push(|out| write::parameter_description(out, &vec![25; prepared.params]));
            prepared.stmt
        } else {
            let Some(portal) = self.portals.get(named.name) else {
                return Err(Fault::new(b"34000", format!("portal \"{name}\" does not exist")));
            };
            portal.stmt.clone()
        };
        match stmt {
            Some(stmt) => self.describe(&stmt),
            None => self.push(write::no_data),
        }
        Ok(())
    }

    fn execute(&mut self, message: &Execute<'_>) -> Result<(), Fault> {
        let name = message.portal.to_vec();
        let Some(portal) = self.portals.get(&name).cloned() else {
            let shown = String::from_utf8_lossy(&name).into_owned();
            return Err(Fault::new(b"34000", format!("portal \"{shown}\" does not exist")));
        };
        let Some(stmt) = portal.stmt else {
            self.push(write::empty_query);
            return Ok(());
        };
        let limit = u32::try_from(message.max_rows).unwrap_or(0);
        if self.failed && !stmt.is_exit() {
            return Err(aborted());
        }
        if portal.rows.is_some() {
            self.active = Some(Active::Rows { portal: Some(name), limit, sent: 0 });
            return Ok(());
        }
        if portal.done {
            return Err(Fault::new(b"55000", "portal cannot be run"));
        }
        if let Some(portal) = self.portals.get_mut(&name) {
            portal.done = true;
        }
        let eval = self.evaluate(&stmt, portal.param.as_deref())?;
        let now = self.now;
        self.begin(eval, &stmt, Some(name), limit, now);
        Ok(())
    }
}

/// The formats and values of a Bind with at most one parameter in text.
fn read_param(rest: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
    let word = |at: usize| {
        let bytes = rest.get(at..at + 2).ok_or_else(violation)?;
        Ok::<usize, Fault>(usize::from(bytes[0]) << 8 | usize::from(bytes[1]))
    };
    let formats = word(0)?;
    let at = 2 + formats * 2;
    if word(at)? == 0 {
        return Ok(None);
    }
    let length = rest.get(at + 2..at + 6).ok_or_else(violation)?;
    let length = u32::from_be_bytes(length.try_into().unwrap_or_default()) as usize;
    rest.get(at + 6..at + 6 + length).map(|value| Some(value.to_vec())).ok_or_else(violation)
}
