// How figures are said.

const MIB = 1 << 20;
const GIB = 1 << 30;

export function bytes(value: number): string {
  if (value >= GIB) {
    return `${short(value / GIB)} GiB`;
  }
  if (value < 1024) {
    return `${value.toFixed(0)} B`;
  }
  return value >= MIB / 10 ? `${short(value / MIB)} MiB` : `${(value / 1024).toFixed(0)} KiB`;
}

export function rate(value: number): string {
  if (value >= 1e9) {
    return `${short(value / 1e9)} GB/s`;
  }
  return value >= 1e5 ? `${short(value / 1e6)} MB/s` : `${(value / 1000).toFixed(0)} kB/s`;
}

export function percent(value: number): string {
  return `${value.toFixed(0)} %`;
}

/** Says how long something took or is ago, in its two greatest units. */
export function duration(seconds: number): string {
  const whole = Math.max(Math.floor(seconds), 0);
  const parts: [number, string][] = [
    [Math.floor(whole / 86400), 'd'],
    [Math.floor(whole / 3600) % 24, 'h'],
    [Math.floor(whole / 60) % 60, 'min'],
    [whole % 60, 's']
  ];
  const first = parts.findIndex(([count]) => count > 0);
  if (first < 0) {
    return '0 s';
  }
  return parts
    .slice(first, first + 2)
    .filter(([count]) => count > 0)
    .map(([count, unit]) => `${count} ${unit}`)
    .join(' ');
}

/** Says how long ago something was, in its greatest unit. */
export function age(seconds: number): string {
  return duration(seconds).split(' ').slice(0, 2).join(' ');
}

function short(value: number): string {
  return value.toFixed(value >= 100 ? 0 : 1);
}
