// What forks showed, as the host gives it along with the table under a %%fork cell.

export const MIME = 'application/vnd.agentvm.forks+json';

export interface Fork {
  fork: number;
  status: string;
  seconds: number;
  cpuSeconds: number;
  memory: number;
  /** It rests and can be adopted. */
  kept: boolean;
  reason: string;
  /** How much of its output was not let through. */
  blocked: number;
  outputs: readonly Bundle[];
}

export interface Forks {
  /** Number of the run that made them. */
  run: number;
  forks: readonly Fork[];
}

/** Data by MIME type. */
export type Bundle = Readonly<Record<string, unknown>>;

const MOST_FORKS = 64;
const MOST_OUTPUTS = 4096;
const STATUSES = ['ok', 'error', 'timeout', 'flood', 'died'];

/** Returns what came of forks if some of a cell's outputs, as a notebook stores them, tell it; else null. */
export function forksOf(outputs: readonly unknown[]): Forks | null {
  for (const output of outputs) {
    const said = object(object(output)?.data)?.[MIME];
    const forks = said === undefined ? null : read(said);
    if (forks) {
      return forks;
    }
  }
  return null;
}

function read(said: unknown): Forks | null {
  const value = object(said);
  const run = value?.run;
  if (!isNumber(run) || !Array.isArray(value?.forks) || value.forks.length > MOST_FORKS) {
    return null;
  }
  const forks = value.forks.map(fork);
  return forks.some(one => one === null) ? null : { run, forks: forks as Fork[] };
}

function fork(said: unknown): Fork | null {
  const value = object(said) ?? {};
  const numbers = [value.fork, value.seconds, value.cpu_seconds, value.memory, value.blocked];
  const { status, reason, kept } = value;
  if (!numbers.every(isNumber) || typeof status !== 'string' || !STATUSES.includes(status)) {
    return null;
  }
  if (typeof reason !== 'string' || typeof kept !== 'boolean' || !Array.isArray(value.outputs)) {
    return null;
  }
  const [number, seconds, cpuSeconds, memory, blocked] = numbers as number[];
  const outputs = value.outputs.slice(0, MOST_OUTPUTS).map(bundle).filter(one => one !== null);
  return { fork: number, status, seconds, cpuSeconds, memory, kept, reason, blocked, outputs };
}

/** Returns an output as what it is drawn from. */
function bundle(said: unknown): Bundle | null {
  const output = object(said);
  switch (output?.output_type) {
    case 'stream':
      return { [`application/vnd.jupyter.${output.name === 'stderr' ? 'stderr' : 'stdout'}`]: joined(output.text) };
    case 'error':
      return { 'application/vnd.jupyter.stderr': joined(output.traceback, '\n') };
    case 'display_data':
    case 'execute_result':
      return drawable(object(output.data) ?? {});
    default:
      return null;
  }
}

/** Frames are not drawn where an output is not trusted: then its text, or picture, is. */
function drawable(data: Record<string, unknown>): Bundle {
  const { 'text/html': html, ...rest } = data;
  const text = joined(html);
  return html === undefined || (/<iframe/i.test(text) && Object.keys(rest).length) ? rest : { ...rest, 'text/html': text };
}

function joined(value: unknown, glue = ''): string {
  const lines = Array.isArray(value) ? value : [value];
  return lines.filter(line => typeof line === 'string').join(glue);
}

function object(value: unknown): Record<string, unknown> | null {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : null;
}

function isNumber(value: unknown): value is number {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0;
}
