"""placeholder"""
def make_stacks(configs, device, options, processes, folder):
    return [(n,) for n in configs], 'one by one'
