// How figures are said; as agentvm_kernel/widgets/figures.py says them.

const MIB = 1 << 20;
const GIB = 1 << 30;
const MB = 1e6;
const GB = 1e9;

export type Unit = '%' | 'B' | 'B/s';

export function said(value: number, unit: Unit): string {
  if (unit === '%') {
    return `${value.toFixed(0)} %`;
  }
  if (unit === 'B/s') {
    if (value >= GB) {
      return `${short(value / GB)} GB/s`;
    }
    return value >= MB / 10 ? `${short(value / MB)} MB/s` : `${(value / 1000).toFixed(0)} kB/s`;
  }
  if (value >= GIB) {
    return `${short(value / GIB)} GiB`;
  }
  return value >= MIB / 10 ? `${short(value / MIB)} MiB` : `${(value / 1024).toFixed(0)} KiB`;
}

function short(value: number): string {
  return value.toFixed(value >= 100 ? 0 : 1);
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
