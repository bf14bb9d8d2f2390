// How figures are said; as agentvm_kernel/widgets/figures.py says them.

const MIB = 1 << 20;
const GIB = 1 << 30;

export type Unit = '%' | 'B' | 'B/s';

export function said(value: number, unit: Unit): string {
  if (unit === '%') {
    return `${value.toFixed(0)} %`;
  }
  const rate = unit.slice(1);
  if (value >= GIB) {
    return `${(value / GIB).toFixed(1)} GiB${rate}`;
  }
  return value >= MIB / 10 ? `${(value / MIB).toFixed(1)} MiB${rate}` : `${(value / 1024).toFixed(0)} KiB${rate}`;
}

export function clock(time: number): string {
  return new Date(time * 1000).toLocaleTimeString('en-GB');
}

/** Makes an element whose text is no markup, whoever has said it. */
export function element<K extends keyof HTMLElementTagNameMap>(
  name: K,
  kind = '',
  text = ''
): HTMLElementTagNameMap[K] {
  const made = document.createElement(name);
  made.className = kind;
  made.textContent = text;
  return made;
}
