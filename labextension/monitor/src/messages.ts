// What the host and its views say to each other; the other end is agentvm_kernel/widgets/monitor.py.

/** The part of anywidget's model that is used. */
export interface Model {
  send(content: object): void;
  on(event: string, callback: (content: unknown) => void): void;
  off(event: string, callback: (content: unknown) => void): void;
}

/** Time, CPU, memory on the host, memory touched by the guest, disk read and written, network sent and received. */
export type Point = [number, number, number, number, number, number, number, number];

export type Kind = 'cell' | 'snapshot' | 'rollback' | 'vm' | 'end';

/** Number, kind, time, text, end, failed. */
export type Event = [number, Kind, number, string, number | null, boolean];

/**
 * Key, time, cell, host, port, verdict, sent, received, duration, protocol, reason, count, what may be allowed, and
 * whether it has been.
 */
export type Row = [
  string,
  number,
  string,
  string,
  number,
  string,
  number,
  number,
  number | null,
  string,
  string,
  number,
  string,
  boolean
];

export interface Now {
  state: 'running' | 'held' | 'starting' | 'ended';
  text: string;
  vm: string;
  facts: string;
  cpu: number;
  memory: number;
  disk: number;
  open: number;
  allowed: number;
  refused: number;
}

export interface News {
  is: 'all' | 'news';
  number: number;
  now: Now;
  points?: Point[];
  events?: Event[];
  connections?: Row[];
}

export interface Answer {
  is: 'answer';
  key: string;
  text: string;
  allowed: string;
  time: number;
}
