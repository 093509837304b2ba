// The contract of ../README.md for the node programs: settings, units of work, the report.
// Not here: any driver. Next on the path: pg.mjs.

const STEPS = ["connect", "prepared", "pipeline", "copy", "transaction", "error", "cancel"];
const ERRORS_SHOWN = 5;
const TURNS = 7;
const TEXTS = 3;
const SLEEPER_EVERY = 5;

export const STATEMENTS = 10;
export const BESIDE = 5;
export const SLEEP = "SELECT pg_sleep(30)";
export const CUT_AFTER_MS = 300;
export const CUT_WITHIN_MS = 10_000;
export const COPY_IN = "COPY copied FROM STDIN";
export const KEPT = "committed outer";

/** What to connect to in one step, under the names that both drivers use. */
function where(step) {
  const given = process.env;
  return {
    host: given.PGHOST,
    port: Number(given.PGPORT),
    user: given.PGUSER,
    password: given.PGPASSWORD,
    database: `${given.PGDATABASE}_${step}`,
  };
}

/** Fails unless two results are the same by value. */
export function expect(got, wanted) {
  const [left, right] = [JSON.stringify(got), JSON.stringify(wanted)];
  if (left !== right) {
    throw new Error(`wrong result: ${left} instead of ${right}`.slice(0, 300));
  }
}

/** Fails unless a promise is rejected with an SQLSTATE. */
export async function expectError(promise, sqlstate) {
  let code = "no error";
  try {
    await promise;
  } catch (error) {
    code = error.code ?? String(error);
  }
  expect(code, sqlstate);
}

/** Gives [text, parameter, row] for all turns and texts of the step `prepared`. */
export function* preparedTurns(tag) {
  for (let turn = 0; turn < TURNS; turn += 1) {
    for (let text = 0; text < TEXTS; text += 1) {
      const value = tag * 100 + turn;
      yield [`SELECT $1::int AS a, 'text ${text}' AS b`, value, { a: value, b: `text ${text}` }];
    }
  }
}

/** The rows of the step `copy` in COPY's text format. */
export function copyText(tag) {
  return Array.from({ length: 100 }, (_, n) => `${tag}\t${n}\tnote ${tag} ${n}\n`).join("");
}

/** The statement that reads them back. */
export function copyOut(tag) {
  return `COPY (SELECT tag, n, note FROM copied WHERE tag = ${tag} ORDER BY n) TO STDOUT`;
}

/** Fails if a promise takes too long: a statement that was to be cut off. */
export async function inTime(promise) {
  const begun = Date.now();
  await promise;
  if (Date.now() - begun > CUT_WITHIN_MS) {
    throw new Error("the statement was not cut off");
  }
}

function say(fields) {
  process.stdout.write(`${JSON.stringify(fields)}\n`);
}

async function runStep(program, step, clients, rounds) {
  const begun = Date.now();
  const place = where(step);
  const errors = [];
  let done = 0;
  const pool = step === "connect" ? place : await program.openPool(place, clients, step);
  async function client(number) {
    const sleeps = number % SLEEPER_EVERY === 0;
    const work = step === "cancel" && !sleeps ? program.beside : program[step];
    for (let round = 0; round < rounds; round += 1) {
      try {
        await work(pool, number * 1000 + round);
        done += 1;
      } catch (error) {
        errors.push(String(error).slice(0, 400));
      }
    }
  }
  await Promise.all(Array.from({ length: clients }, (_, number) => client(number)));
  if (step !== "connect") {
    await program.closePool(pool);
  }
  const shown = errors.slice(0, ERRORS_SHOWN);
  if (errors.length > shown.length) {
    shown.push(`and ${errors.length - shown.length} more`);
  }
  say({ step, done, errors: shown, seconds: (Date.now() - begun) / 1000 });
}

/**
 * Runs all steps.
 *
 * `program`: driver, version, pool (names); openPool(place, clients, step), closePool(pool); one
 * function (pool, tag) a step, connect gets the place; a text says why the driver has no such step;
 * `cancel` is cut off, `beside` works meanwhile.
 */
export async function run(program) {
  const clients = Number(process.env.DRIVER_CLIENTS ?? 50);
  const rounds = Number(process.env.DRIVER_ROUNDS ?? 2);
  say({ driver: program.driver, version: program.version, pool: program.pool });
  for (const step of STEPS) {
    if (typeof program[step] === "string") {
      say({ step, unsupported: program[step] });
    } else {
      await runStep(program, step, clients, rounds);
    }
  }
}
