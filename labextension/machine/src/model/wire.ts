// What the server extension says; see docs/server.md.

export interface Cell {
  run: number;
  count: number;
  code: string;
  cell_id?: string;
}

export interface Snapshot {
  id: string;
  parent: string;
  label: string;
  text: string;
  kind: string;
  created: number;
  size: number;
  written: number;
  cell: Cell;
  busy: boolean;
  pause_ms: number;
  stored: boolean;
}

export interface Tree {
  /** Id of the snapshot that the machine descends from; empty for the image's own state. */
  current: string;
  used: number;
  quota: number;
  snapshots: Snapshot[];
}

export interface Stats {
  time: number;
  cpu_percent: number;
  memory: number;
  memory_cost: number;
  disk_read: number;
  disk_written: number;
  network_sent: number;
  network_received: number;
  connections: number;
  executing: boolean;
}

export interface Network {
  mode: string;
  allow: string[];
  deny: string[];
  /** Hosts that are allowed because the package ships with them. */
  shipped?: number;
  allowed: number;
  refused: number;
}

export interface Machine {
  state: 'running' | 'starting' | 'restarting' | 'none' | 'foreign' | 'ended';
  text?: string;
  vm?: string;
  profile?: string;
  image?: string;
  digest?: string;
  accelerator?: string;
  age?: number;
  vcpus?: number;
  memory_mib?: number;
  disk_gb?: number;
  executing?: boolean;
  snapshot?: string;
  travelling?: boolean | null;
  /** It was slowed down or stopped because of an anomaly. */
  held?: '' | 'slowed' | 'paused';
  network?: Network | null;
  limits?: Record<string, number | null>;
  blocked?: number;
  /** How many anomalies there were that are more than of note. */
  anomalies?: number;
  stats?: Stats | null;
}

export interface Connection {
  id: number;
  time: number;
  cell: string;
  name: string;
  address: string;
  port: number;
  verdict: 'allowed' | 'refused' | 'failed';
  rule: string;
  reason: string;
  hint: string;
  bytes_sent: number;
  bytes_received: number;
  duration: number | null;
  count: number;
}

export interface Plan {
  target: Snapshot;
  left: Snapshot[];
  seconds: number;
  written: number;
  connections: Connection[];
  connection_count: number;
  lost: string[];
}

export interface Failure {
  code: string;
  message: string;
  hint: string;
}

export interface Done {
  status: 'ok' | 'error';
  text: string;
  error: Failure | null;
  snapshot: string;
}

export interface Changes<T> {
  added: T[];
  removed: T[];
  changed: T[];
}

export interface NamedFile {
  path: string;
  size?: number;
  size_before?: number;
  size_after?: number;
}

export interface Package {
  name: string;
  version?: string;
  before?: string;
  after?: string;
}

export interface Variable {
  name: string;
  type?: string;
  summary?: string;
  before?: string;
  after?: string;
}

export interface Comparison {
  a: string;
  b: string;
  /** It is the guest that says so. */
  claimed: boolean;
  files: Changes<NamedFile> & { count: number; truncated: boolean };
  packages: Changes<Package>;
  processes: { added: string[]; removed: string[] };
  variables: Changes<Variable>;
}

export interface Blocked {
  time: number;
  reason: string;
  detail: string;
  count: number;
  /** Number of the run; 0 if it is not known. */
  cell: number;
}

export interface Anomaly {
  time: number;
  vm: string;
  rule: string;
  severity: string;
  /** What the machine did, as the rule says. */
  text: string;
  /** What it is about, such as a host, as the guest named it. */
  about: string;
  /** Only the guest says so. */
  claimed: boolean;
  value: number;
  threshold: number;
  response: string;
  /** What came of the response; empty if nothing is known of it. */
  outcome: string;
  is_over: boolean;
}

export interface Finding {
  title: string;
  ok: boolean;
  detail: string;
  remedy: string;
}

export interface Host {
  version: string;
  supervisor: 'running' | 'absent';
  accelerator: string;
  findings: Finding[];
}

export interface Event {
  kernel_id: string;
  /** `gone`: the machine has ended; all but that and `stats` say only that it is worth asking again. */
  what: 'stats' | 'machine' | 'snapshots' | 'connections' | 'blocked' | 'anomalies' | 'gone';
  stats?: Stats;
  restored?: string;
}
