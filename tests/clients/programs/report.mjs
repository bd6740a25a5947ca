// How a client's program says what works: a line of JSON for each check.
export const TINY = process.env.FERRUM_TINY;
export const SCRIPTED = process.env.FERRUM_SCRIPTED;

export async function check(name, run) {
  let ok = false, note = "";
  try {
    const found = await run();
    ok = Boolean(found);
    note = ok ? "" : `got ${found}`;
  } catch (error) {
    note = `${error.name}: ${error.message}`.replace(/\s+/g, " ").slice(0, 300);
  }
  console.log(JSON.stringify({ check: name, ok, note }));
}
