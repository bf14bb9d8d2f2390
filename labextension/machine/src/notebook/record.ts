// What is kept with a cell of the run that its outputs are of. It comes from the reply's metadata, which the host
// writes, and lies in the notebook's file, where anybody may have written anything.

/** The key of the record in a cell's metadata, and of the host's words in a reply's. */
export const KEY = 'agentvm';

export interface Ran {
  /** Number of the run within the kernel process; it never goes back. */
  run: number;
  /** The machine that it ran in. */
  vm: string;
  /** Id of the snapshot that the machine descended from before; empty for the image's own state. */
  base: string;
  /** The same after: another than before if a snapshot was taken of what the run led to. */
  after: string;
  /** The kernel's id. */
  kernel: string;
  /** The host ran it, not the machine: a magic. */
  host?: true;
}

/** A record with what else the host has said of the run: the SHA-256 of its code, what it cost, what it did. */
export interface Kept extends Ran {
  code?: unknown;
  forks?: unknown;
  copied?: unknown;
  shared?: unknown;
  facts?: unknown;
}

/** In the order in which there has to be room for it. */
const BESIDES = ['code', 'forks', 'copied', 'shared', 'facts'] as const;
const MOST_BYTES = 2000;
const SNAPSHOT = /^(?:[0-9a-f]{12})?$/;
const NAME = /^[\w-]{1,64}$/;
const MOST_RUNS = 2 ** 31;
/** Whoever ran in the machine used its processor, which is measured; magics have none of these. */
const MEASURED = ['cpu_seconds', 'memory_peak'];

/** Returns the record of a run from its reply's metadata, with as much of what the host says besides as there is room
    for; null if the host says nothing of it. */
export function recorded(metadata: unknown, kernel: string): Kept | null {
  const said = field(metadata, KEY);
  const facts = field(said, 'facts');
  const snapshot = field(said, 'snapshot');
  const ran = checked({
    run: field(said, 'run'),
    vm: field(said, 'vm'),
    base: field(facts, 'snapshot_before') ?? snapshot,
    after: field(facts, 'snapshot_after') ?? snapshot,
    kernel,
    ...(!MEASURED.some(name => typeof field(facts, name) === 'number') && { host: true })
  });
  if (!ran) {
    return null;
  }
  const { snapshot_before: _, snapshot_after: __, ...cost } = Object(facts) as Record<string, unknown>;
  return BESIDES.reduce<Kept>((kept, name) => {
    const value = name === 'facts' ? cost : field(said, name);
    const longer = { ...kept, [name]: value };
    return value !== undefined && size(longer) <= MOST_BYTES ? longer : kept;
  }, ran);
}

/** Returns a record if it is one, with nothing else in it; else null. */
export function checked(value: unknown): Ran | null {
  const run = field(value, 'run');
  const [vm, base, after, kernel] = ['vm', 'base', 'after', 'kernel'].map(name => field(value, name));
  if (typeof run !== 'number' || !Number.isInteger(run) || run < 1 || run >= MOST_RUNS) {
    return null;
  }
  if (!matches(vm, NAME) || !matches(kernel, NAME) || !matches(base, SNAPSHOT) || !matches(after, SNAPSHOT)) {
    return null;
  }
  return { run, vm, base, after, kernel, ...(field(value, 'host') === true && { host: true as const }) };
}

function size(value: unknown): number {
  return new TextEncoder().encode(JSON.stringify(value)).length;
}

function matches(value: unknown, pattern: RegExp): value is string {
  return typeof value === 'string' && pattern.test(value);
}

function field(value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[name] : undefined;
}
