// Which labels a snapshot may have; see agentvm_kernel/snapshots/label.py.

/** How long one is at most. */
export const LONGEST = 64;

const LABEL = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const ID = /^[0-9a-f]{12}$/;

/** Whether a label is valid; none is, too. */
export function isLabel(text: string): boolean {
  return !text || (LABEL.test(text) && !ID.test(text));
}
